"""Tenants: who shares a service without knowing of each other."""
