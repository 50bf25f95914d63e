"""The policy's network: a VLM and a flow-matching action expert that reads its layers."""
