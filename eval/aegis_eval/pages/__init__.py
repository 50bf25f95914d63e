"""Results as pages: HTML, SVG and Markdown."""
