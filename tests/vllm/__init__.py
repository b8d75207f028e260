"""Tests that make a vLLM engine in their own process; run_scripts/test_vllm.sh runs each file by itself."""
