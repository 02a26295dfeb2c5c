"""Function Compute 3.0's API (2023-03-30) as its SDKs speak it, over Joey's functions: a translation (docs/fc.md)."""
