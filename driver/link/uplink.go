// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
	Addrs []netip.Addr // that the host may send from there, the best of each family first
}

// Addr is the best address of a family, or the zero Addr.
func (u Uplink) Addr(v6 bool) netip.Addr {
	for _, a := range u.Addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Uplinks are the devices with these names, or, without any, those that default routes lead to and those that lead to
// other hosts by what they are, by ifindex. A name that the host does not have is no error: the device may come. Unfit
// says of others why our programs do not lead out by them.
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
	if len(names) == 0 {
		if err := addNICs(found); err != nil {
			return nil, nil, err
		}
	}
	for index, l := range found {
		if why := unfitUplink(l); why != "" {
			unfit = append(unfit, l.Attrs().Name+" "+why)
			continue
		}
		addrs, err := sourcesOf(l)
		if err != nil {
			return nil, nil, err
		}
		uplinks = append(uplinks, Uplink{Device: device(l), Addrs: append(sources[index], addrs...)})
	}
	slices.Sort(unfit)
	slices.SortFunc(uplinks, func(a, b Uplink) int { return cmp.Compare(a.Index, b.Index) })
	return uplinks, unfit, nil
}

// unfitUplink says why a device is none for our programs. They read frames of Ethernet, or what begins with an IP header.
// Tunnels whose packets the kernel has with more before that (GRE) stay the host's, whose stack forwards and filters what
// containers send there with their own addresses. Our own devices lead to containers.
func unfitUplink(l netlink.Link) string {
	a := l.Attrs()
	switch {
	case strings.HasPrefix(a.Alias, alias) || a.Group == group:
		return "is a device of mustang's own"
	case a.EncapType != "ether" && !isIP(l):
		return "has headers of another kind (" + a.EncapType + ") than Ethernet, tun, WireGuard and PPP"
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

// addNICs adds devices that lead to other hosts by what they are, and by which the host talks itself: their network may
// have no default route, as one for storage.
func addNICs(found map[int]netlink.Link) error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list the devices: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	for _, l := range links {
		if found[l.Attrs().Index] != nil || !isNIC(l) || !onNIC(l, byIndex, found) || unfitUplink(l) != "" {
			continue
		}
		addrs, err := sourcesOf(l)
		if err != nil {
			return err
		}
		if len(addrs) > 0 {
			found[l.Attrs().Index] = l
		}
	}
	return nil
}

// onNIC tells whether a VLAN, however deep, is one of a device that leads out, and whether a device without a kind is hardware:
// the networks of some virtual machines have none either.
func onNIC(l netlink.Link, byIndex, uplinks map[int]netlink.Link) bool {
	switch l.Type() {
	case "device":
		_, err := os.Stat("/sys/class/net/" + l.Attrs().Name + "/device")
		return err == nil
	case "vlan":
		parent := byIndex[l.Attrs().ParentIndex]
		if parent == nil || l.Attrs().NetNsID >= 0 {
			return false // in another network namespace
		}
		return uplinks[parent.Attrs().Index] != nil || isNIC(parent) && onNIC(parent, byIndex, uplinks)
	}
	return true
}

// isNIC tells whether a device leads to other hosts by what it is: hardware, which has no kind, a VLAN, bond or team, or
// a VPN's or modem's device without Ethernet headers. Others may lead to containers and virtual machines (a bridge, a
// veth device), among them those that another tool isolates: they have to be named.
func isNIC(l netlink.Link) bool {
	a := l.Attrs()
	if a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 || a.MasterIndex != 0 {
		return false
	}
	switch l.Type() {
	case "device", "vlan", "bond", "team":
		return true
	}
	return isIP(l)
}

// unsteady are addresses that are not ready, or will go: what leaves with them would be cut off.
const unsteady = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY

// sourcesOf are the addresses of a device that the host may send from, those of the whole world before unique local ones
// (RFC 6724, 3.1 and 5).
func sourcesOf(l netlink.Link) ([]netip.Addr, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", l.Attrs().Name, err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		// of IPv4 the same bit as of temporary ones is that of secondary ones (IFA_F_SECONDARY), which come last anyway
		is, ok := netip.AddrFromSlice(a.IP)
		if is = is.Unmap(); !ok || a.Scope != unix.RT_SCOPE_UNIVERSE || is.Is6() && a.Flags&unsteady != 0 {
			continue
		}
		out = append(out, is)
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int {
		local := func(a netip.Addr) int {
			if a.Is6() && a.IsPrivate() {
				return 1
			}
			return 0
		}
		return cmp.Compare(local(a), local(b))
	})
	return out, nil
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
