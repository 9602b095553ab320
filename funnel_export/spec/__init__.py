"""Settings of funnels, exports, optimization profiles and Triton models, validated on construction."""
