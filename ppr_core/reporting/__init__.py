"""What people read: tables, claims, figures and the report."""
