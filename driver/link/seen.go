// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// seen is what devices of our own namespace have, listed once for all of them: the kernel lists those of one device by going through
// those of every one, of which there may be thousands.
type seen struct {
	addrs  map[at]bool
	routes map[at]bool // to one address each
	neighs map[at]netlink.Neigh
	mtu    int
}

// UplinkMTU is that of the host, which every endpoint asks for.
func (l Look) UplinkMTU() int {
	if l.seen.mtu == 0 {
		l.seen.mtu = l.Host.UplinkMTU()
	}
	return l.seen.mtu
}

// at is an address at a device.
type at struct {
	ifindex int
	addr    netip.Addr
}

func (s *seen) addresses() (map[at]bool, error) {
	if s.addrs != nil {
		return s.addrs, nil
	}
	list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of devices: %w", err)
	}
	s.addrs = map[at]bool{}
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			s.addrs[at{a.LinkIndex, p.Addr()}] = true
		}
	}
	return s.addrs, nil
}

func (s *seen) routed() (map[at]bool, error) {
	if s.routes != nil {
		return s.routes, nil
	}
	routes := map[at]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range list {
			if p, ok := prefixOf(r.Dst); ok && p.IsSingleIP() {
				routes[at{r.LinkIndex, p.Addr()}] = true
			}
		}
	}
	s.routes = routes
	return routes, nil
}

func (s *seen) neighbours() (map[at]netlink.Neigh, error) {
	if s.neighs != nil {
		return s.neighs, nil
	}
	list, err := whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the neighbours: %w", err)
	}
	s.neighs = map[at]netlink.Neigh{}
	for _, n := range list {
		if addr, ok := netip.AddrFromSlice(n.IP); ok {
			s.neighs[at{n.LinkIndex, addr.Unmap()}] = n
		}
	}
	return s.neighs, nil
}
