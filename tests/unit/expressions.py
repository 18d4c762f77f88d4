"""Filter expressions and frames for comparing who says what of them: the kernel, the interpreter, the BPF programs."""

from __future__ import annotations

HOSTS = " or ".join(f"host 172.17.{n}.{3 * n % 7}" for n in range(50))

EXPRESSIONS = (
    "", "icmp", "icmp6", "ip", "ip6", "arp", "not ip6", "tcp", "udp port 9999", "tcp port 80 and host 172.17.0.3", "port 53",
    "net 10.0.0.0/8 and not port 53", "tcp[tcpflags] & tcp-syn != 0 and portrange 1000-2000", HOSTS,
    "src host 172.17.0.2 and dst port 80", "ip6 host 2001:db8::3", "ip6 net 2001:db8::/32 and udp", "ip proto 47 or igmp",
    "ip[6:2] & 0x1fff != 0", "arp host 172.17.0.3", "arp[6:2] = 1", "ether multicast", "ether broadcast",
    "ether host 02:42:ac:11:00:03", "ether src 02:42:ac:11:00:02 and ip", "ether[10:4] = 0x00020800", "ether[11:2] = 0x0208",
    "ether[13] = 6", "ether proto 0x88cc", "len > 100", "less 60", "greater 1000", "vlan", "vlan 5", "vlan 5 and icmp",
    "vlan and tcp port 80", "vlan and vlan 7 and udp", "ether[15] = 5 and vlan", "vlan and ether[12:4] = 0x81000005",
    "ip[0] & 0xf > 5", "ip[2:2] % 7 = 3", "-ip[8] > 5000 and -ip[8] < 0xffffffc1",
    "ip[8] * ip[9] = 64", "ip[8] << 2 = 256", "ip[8] >> ip[9] = 0",
    "ip[2:2] / ip[1] = 3", "ip[ip[8]] = 0x61", "ip[ip[8] - 62:2] = 84", "ether[ip[1]:2] = 0x0242", "ether[ip[1]] = 0x08",
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", "udp[8:4] = 0x61626364", "tcp[13] = 2 or tcp[13] = 18",
    "icmp[icmptype] = icmp-echo", "ip6[40] = 128", "ip6[6] ^ 0x2c = 0", "ip6[7] | 1 = 65", "ether[200:4] = 0x61616161",
    "udp[100] = 0x61", "tcp port 80 or udp port 53 or icmp or arp or ip6", "geneve", "mpls", "pppoes", "stp",
    "ip multicast", "tcp src portrange 1-1023", "host 172.17.0.2 and (tcp dst port 80 or udp) and not len > 500",
)


def frames() -> dict[str, bytes]:
    """Name -> bytes from the Ethernet header on."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, fragment
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
    from scapy.layers.l2 import ARP, GRE, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether
    from scapy.packet import Packet, Raw

    ether = Ether(src="02:42:ac:11:00:02", dst="02:42:ac:11:00:03")
    ip = IP(src="172.17.0.2", dst="172.17.0.3", id=1)
    ip6 = IPv6(src="2001:db8::2", dst="2001:db8::3")
    ping = ip / ICMP(type=8, id=1, seq=1) / Raw(b"a" * 56)
    syn = TCP(sport=1500, dport=80, flags="S")
    packets: dict[str, Packet] = {
        "arp": Ether(src="02:42:ac:11:00:02", dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="172.17.0.3", psrc="172.17.0.2"),
        "ping": ether / ping, "syn": ether / ip / syn, "to 10": ether / IP(src="172.17.0.2", dst="10.1.2.3") / UDP(dport=53),
        "from 10": ether / IP(src="10.1.2.3", dst="172.17.0.2", tos=12) / TCP(sport=80, dport=40000, flags="SA"),
        "get": ether / ip / TCP(sport=40000, dport=80, flags="PA", options=[("NOP", 0)] * 4) / Raw(b"GET / HTTP/1.1"),
        "udp": ether / ip / UDP(sport=5000, dport=9999) / Raw(b"abcd" * 30), "dns": ether / ip / UDP(sport=53, dport=5000),
        "long": ether / ip / UDP(sport=5000, dport=9) / Raw(b"a" * 1200),
        "options": ether / IP(src="172.17.0.2", dst="172.17.0.3", options=[IPOption_RR()]) / syn,
        "all options": ether / IP(dst="172.17.1.3", options=[IPOption_RR(length=39, routers=["0.0.0.0"] * 9)]) / UDP(),
        "no header": ether / IP(src="172.17.0.2", dst="172.17.0.3", ihl=0) / syn,
        "gre": ether / ip / GRE() / ip, "igmp": ether / IP(dst="224.0.0.1", proto=2, tos=3) / Raw(b"\x11" * 8),
        "ping6": ether / ip6 / ICMPv6EchoRequest(), "syn6": ether / ip6 / syn, "udp6": ether / ip6 / UDP(dport=9999),
        "behind options": ether / ip6 / IPv6ExtHdrDestOpt() / UDP(dport=53),
        "fragment6": ether / ip6 / IPv6ExtHdrFragment(nh=17, m=1) / UDP(dport=9999),
        "vlan 5": ether / Dot1Q(vlan=5) / ping, "vlan 6": ether / Dot1Q(vlan=6) / ip / syn,
        "vlan 5 tcp": ether / Dot1Q(vlan=5, prio=3) / ip / syn,
        "vlan 7 in 5": ether / Dot1AD(vlan=5) / Dot1Q(vlan=7) / ip / UDP(),
        "vlan 6 v6": ether / Dot1Q(vlan=6) / ip6 / syn,
        "lldp": Ether(src="02:42:ac:11:00:02", dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\x02\x07"),
        "stp": Dot3(src="02:42:ac:11:00:02", dst="01:80:c2:00:00:00") / LLC() / STP(),
    }
    built = {name: bytes(packet) for name, packet in packets.items()}
    for number, part in enumerate(fragment(ip / UDP(sport=5000, dport=9999) / Raw(b"abcd" * 500), fragsize=800)):
        built[f"fragment {number}"] = bytes(ether / part)
    for name in ("syn", "options", "syn6", "vlan 5 tcp", "arp"):
        for length in (15, 17, 20, 33, 34, 35, 38, 47, 53):
            built[f"{name}, {length} bytes"] = built[name][:length]
    return built
