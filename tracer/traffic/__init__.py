"""Test packets, built by scapy and sent through a namespace's own IP stack; a module for each kind of probe."""
