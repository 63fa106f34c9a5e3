"""Creates the parts of the reports: HTML pages, SVG charts, the loss curve, and the comparison with the base model."""
