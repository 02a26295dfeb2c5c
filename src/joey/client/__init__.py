"""The client side: transport for the command line now, the SDK later."""
