"""A headless Chromium for pages that are not trusted: how it is found and started, its pages, and pictures of them."""
