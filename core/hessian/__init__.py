"""Stage 2: estimates of the retain Hessian, one estimator a module."""
