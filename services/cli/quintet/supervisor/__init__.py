"""``quintet serve``: the services and the router as processes of one parent that starts, watches and stops them."""
