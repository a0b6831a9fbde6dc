// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
)

// overlapping returns the first of others that shares an address with p.
func overlapping(p netip.Prefix, others []netip.Prefix) (netip.Prefix, bool) {
	for _, o := range others {
		if p.Overlaps(o) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}

// hostRoutes reads the routes that a pool may not overlap. A route to everything says nothing about
// who uses an address, and VPN clients write theirs as two halves.
func (i *IPAM) hostRoutes() ([]netip.Prefix, error) {
	all, err := i.opts.HostRoutes()
	if err != nil {
		return nil, fmt.Errorf("read the routes of the host: %w", err)
	}
	var routes []netip.Prefix
	for _, r := range all {
		if r.IsValid() && r.Bits() > 1 {
			routes = append(routes, r.Masked())
		}
	}
	return routes, nil
}

// checkOverlap refuses an explicit subnet that shares addresses with anything. Pools come first: an
// existing one has a route of its own on the host, and its name says more.
func (i *IPAM) checkOverlap(subnet netip.Prefix, routes []netip.Prefix) error {
	for _, p := range i.pools {
		if p.Subnet.Overlaps(subnet) {
			return fmt.Errorf("pool %s overlaps %s: %w: choose another subnet, or remove the network that has it",
				subnet, p, ErrOverlap)
		}
	}
	if r, found := overlapping(subnet, i.opts.Reserved); found {
		return fmt.Errorf("pool %s overlaps the service pool %s: %w: choose another subnet, or another service pool in mustang's configuration",
			subnet, r, ErrOverlap)
	}
	if r, found := overlapping(subnet, routes); found {
		return fmt.Errorf("pool %s overlaps the host's route to %s: %w: choose another subnet, or remove the route", subnet, r, ErrRoute)
	}
	return nil
}

// freeBlock returns the lowest default block of the family that overlaps nothing. It steps from
// conflict to conflict, so a huge default pool costs no more than a small one.
func (i *IPAM) freeBlock(ipv6 bool, routes []netip.Prefix) (netip.Prefix, error) {
	var conflicts spans
	add := func(p netip.Prefix) { conflicts.add(span{p.Addr(), lastAddr(p)}) }
	for _, p := range i.pools {
		add(p.Subnet)
	}
	for _, p := range i.opts.Reserved {
		add(p.Masked())
	}
	for _, p := range routes {
		add(p)
	}
	tried := ""
	for _, def := range i.opts.DefaultPools {
		if def.Addr().Is6() != ipv6 {
			continue
		}
		if block, found := nextBlock(def, i.opts.blockSize(def), &conflicts); found {
			return block, nil
		}
		tried += fmt.Sprintf(" %s (%s blocks of /%d, %d overlapped by pools)", def,
			addresses(i.opts.blockSize(def)-def.Bits()), i.opts.blockSize(def), i.poolsIn(def))
	}
	family := "IPv4"
	if ipv6 {
		family = "IPv6"
	}
	if tried == "" {
		return netip.Prefix{}, fmt.Errorf("no default pool is configured for %s: %w: give a subnet, or configure a default pool", family, ErrExhausted)
	}
	return netip.Prefix{}, fmt.Errorf("%s default pools:%s: %w: the rest overlaps routes of the host or the service pools; "+
		"remove unused networks, give a subnet, or configure more default pools", family, tried, ErrExhausted)
}

// nextBlock returns the lowest block of that many bits in def that conflicts leave free.
func nextBlock(def netip.Prefix, bits int, conflicts *spans) (netip.Prefix, bool) {
	for at := def.Addr(); at.IsValid() && def.Contains(at); {
		block := netip.PrefixFrom(at, bits)
		last := lastAddr(block)
		run, _ := conflicts.find(at)
		if run == len(conflicts.runs) || last.Less(conflicts.runs[run].first) {
			return block, true
		}
		// The block after the one in which the conflict ends; within this one at the least.
		at = lastAddr(netip.PrefixFrom(conflicts.runs[run].last, bits)).Next()
	}
	return netip.Prefix{}, false
}

func (i *IPAM) poolsIn(def netip.Prefix) (n int) {
	for _, p := range i.pools {
		if p.Subnet.Overlaps(def) {
			n++
		}
	}
	return n
}
