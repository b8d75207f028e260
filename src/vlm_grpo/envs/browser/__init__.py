"""A headless Chromium that renders untrusted pages."""
