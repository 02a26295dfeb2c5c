"""What sandboxes reach and how they are reached: policy, links, names, ports. On top of host/, below the engine."""
