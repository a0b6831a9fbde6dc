// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Uplink is a device of the host that leads out.
type Uplink struct {
	Device
	Addr4 netip.Addr // what the host sends from there; the zero Addr for none
	Addr6 netip.Addr
}

// Uplinks are the devices with these names, or, without any, those that default routes lead to, by ifindex.
// A name that the host does not have is no error: the device may come. Unfit says of others why our programs
// do not lead out by them.
func (Host) Uplinks(names []string) (uplinks []Uplink, unfit []string, err error) {
	found := map[int]netlink.Link{}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("find the uplink %s: %w", name, err)
		}
		found[l.Attrs().Index] = l
	}
	sources, err := defaultUplinks(found, len(names) == 0)
	if err != nil {
		return nil, nil, err
	}
	for index, l := range found {
		if why := unfitUplink(l); why != "" {
			unfit = append(unfit, l.Attrs().Name+" "+why)
			continue
		}
		u := Uplink{Device: device(l)}
		for _, a := range sources[index] {
			u.take(a)
		}
		if err := u.findAddrs(); err != nil {
			return nil, nil, err
		}
		uplinks = append(uplinks, u)
	}
	slices.Sort(unfit)
	slices.SortFunc(uplinks, func(a, b Uplink) int { return cmp.Compare(a.Index, b.Index) })
	return uplinks, unfit, nil
}

// unfitUplink says why a device is none for our programs. They read frames of Ethernet, which tunnels (tun, WireGuard)
// and modems (PPP) do not have: these stay the host's, whose stack forwards and filters what containers send there
// with their own addresses. Our own devices lead to containers.
func unfitUplink(l netlink.Link) string {
	a := l.Attrs()
	switch {
	case strings.HasPrefix(a.Alias, alias) || a.Group == group:
		return "is a device of mustang's own"
	case a.EncapType != "ether":
		return "has no Ethernet header"
	}
	return ""
}

// defaultUplinks finds what default routes want as source, by the device that they lead to, and with add these devices.
func defaultUplinks(found map[int]netlink.Link, add bool) (map[int][]netip.Addr, error) {
	sources := map[int][]netip.Addr{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := routesOf(family)
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 || r.Type != unix.RTN_UNICAST {
				continue
			}
			hops := []int{r.LinkIndex}
			for _, hop := range r.MultiPath {
				hops = append(hops, hop.LinkIndex)
			}
			for _, index := range hops {
				if src, ok := netip.AddrFromSlice(r.Src); ok {
					sources[index] = append(sources[index], src.Unmap())
				}
				if !add || index == 0 || found[index] != nil {
					continue
				}
				l, err := netlink.LinkByIndex(index)
				if isNotFound(err) {
					continue
				}
				if err != nil {
					return nil, fmt.Errorf("find the device of a default route: %w", err)
				}
				found[index] = l
			}
		}
	}
	return sources, nil
}

// take keeps the first address of each family.
func (u *Uplink) take(a netip.Addr) {
	if a.Is4() && !u.Addr4.IsValid() {
		u.Addr4 = a
	} else if a.Is6() && !u.Addr6.IsValid() {
		u.Addr6 = a
	}
}

func (u *Uplink) findAddrs() error {
	addrs, err := (Host{}).Addrs(u.Name)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		u.take(p.Addr())
	}
	return nil
}

// HostAddrs lists the host's own addresses, without those of loopback and of single links.
func (Host) HostAddrs() ([]netip.Addr, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the host: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if got, ok := netip.AddrFromSlice(a.IP); ok && !got.Unmap().IsLoopback() && !got.IsLinkLocalUnicast() {
			out = append(out, got.Unmap())
		}
	}
	return out, nil
}

// Watch sends whenever a device, an address or a route of the host has changed, until ctx ends. Changes
// that come faster than they are received are one.
func (Host) Watch(ctx context.Context) (<-chan struct{}, error) {
	groups := []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("watch devices, addresses and routes: %w", err)
	}
	// it cannot be closed while somebody receives
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 1}); err != nil {
		s.Close()
		return nil, fmt.Errorf("watch devices, addresses and routes: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer s.Close()
		defer close(changed)
		for ctx.Err() == nil {
			_, _, err := s.Receive()
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				continue
			case err != nil && !errors.Is(err, unix.ENOBUFS): // too much to tell is a change, too
				time.Sleep(100 * time.Millisecond)
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
