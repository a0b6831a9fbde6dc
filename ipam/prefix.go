// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
)

// unusable are ranges that no container interface can have an address from. IPv4-mapped addresses are
// among them because the datapath's maps hold every IPv4 address in that form.
var unusable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// parsePrefix reads a prefix without host bits.
func parsePrefix(what, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s %q: %w: want address/bits, for example 10.20.0.0/24", what, text, ErrInvalid)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s %s: %w: it has host bits set, did you mean %s?", what, text, ErrInvalid, p.Masked())
	}
	return p, nil
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if host := 8*(i+1) - p.Bits(); host > 0 {
			b[i] |= byte(1<<min(host, 8) - 1)
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// assignable is the range of addresses that interfaces of a subnet may have: not IPv4's network and
// broadcast address, not IPv6's subnet-router anycast address. Point-to-point subnets (RFC 3021, RFC
// 6164) and single addresses have none of these.
func assignable(subnet netip.Prefix) span {
	s := span{subnet.Addr(), lastAddr(subnet)}
	if subnet.Addr().BitLen()-subnet.Bits() <= 1 {
		return s
	}
	s.first = s.first.Next()
	if subnet.Addr().Is4() {
		s.last = s.last.Prev()
	}
	return s
}

// addresses writes how many addresses a prefix of that many host bits has.
func addresses(hostBits int) string {
	if hostBits >= 32 {
		return fmt.Sprintf("2^%d", hostBits)
	}
	return fmt.Sprint(uint64(1) << hostBits)
}
