"""An MCP server over the SDK: tools by which an agent makes sandboxes and works in them (docs/mcp.md).

The protocol is the official library's, `mcp`, which `pip install 'joey[mcp]'` brings.
"""
