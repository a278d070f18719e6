"""The published interface files of the KServe v2 protocol and of model configurations, and their messages.

`proto/*.proto` and `proto/LICENSE` are those of https://github.com/triton-inference-server/common at commit
83adf7cf88a2f343005974dff3728be746de2d66, unchanged.
`proto/inference.binpb` is made from them by `tools/make_protocol.py`.
"""
