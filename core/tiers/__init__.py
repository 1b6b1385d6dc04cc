"""One tier of guarantee a module (METHOD §4): from an admitted deletion to weights and bounds."""
