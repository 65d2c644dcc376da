"""What every Quintet service is made of. Imports no service and never torch."""
