"""What the machine's network looks like: namespaces, devices, tables, containers, and the names that people use."""
