// SPDX-License-Identifier: Apache-2.0

// Package link is the only speaker of rtnetlink: devices, addresses, neighbours, routes and namespaces.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// alias marks a device as ours; the endpoint's id follows.
const alias = "mustang:"

// protocol marks our routes in the kernel's tables (rtm_protocol; values below 192 are taken or
// listed in /etc/iproute2/rt_protos).
const protocol = 205

// group marks a device as ours from its first moment (IFLA_GROUP), when it has no alias yet: "mst", which nobody else is likely to choose.
const group = 0x6d7374

// Host changes the network namespace that the process runs in.
type Host struct{}

// Device is a device as the kernel knows it.
type Device struct {
	Name  string
	Type  string // veth, netkit, macvlan …
	Index int
	MAC   net.HardwareAddr
	MTU   int
	IP    bool // packets have no Ethernet header: tun, WireGuard, PPP
}

// ownedBy tells whether a device is the owner's, or half made: ours, and nobody's yet.
func ownedBy(l netlink.Link, owner string) bool {
	return l.Attrs().Alias == alias+owner || halfMade(l)
}

func halfMade(l netlink.Link) bool { return l.Attrs().Alias == "" && l.Attrs().Group == group }

func device(l netlink.Link) Device {
	a := l.Attrs()
	return Device{Name: a.Name, Type: l.Type(), Index: a.Index, MAC: a.HardwareAddr, MTU: a.MTU, IP: isIP(l)}
}

// isIP tells whether a device's packets begin with their IP header, as far as our programs can know.
func isIP(l netlink.Link) bool {
	switch l.Attrs().EncapType {
	case "none", "ppp": // tun and WireGuard are "none"
		return true
	}
	return false
}

// Delete removes a device of the owner's, and with it its addresses, neighbours and routes. A missing one
// is no error, and another's of the same name stays.
func (Host) Delete(name, owner string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) || err == nil && !ownedBy(l, owner) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the device %s: %w", name, err)
	}
	return nil
}

// Owned lists the devices of ours, name to owner; half-made ones have the owner "".
func (Host) Owned() (map[string]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the devices: %w", err)
	}
	out := map[string]string{}
	for _, l := range links {
		if owner, ok := strings.CutPrefix(l.Attrs().Alias, alias); ok {
			out[l.Attrs().Name] = owner
		} else if halfMade(l) {
			out[l.Attrs().Name] = ""
		}
	}
	return out, nil
}

// Find returns a device by name.
func (Host) Find(name string) (Device, error) {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		err = ErrNoDevice
	}
	if err != nil {
		return Device{}, fmt.Errorf("find the device %s: %w", name, err)
	}
	return device(l), nil
}

// Connect routes the addresses to the device, tells the kernel the MAC behind them, and gives the
// device the gateways' addresses, which are the source of what the host sends there.
func (Host) Connect(name string, addrs, gateways []netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	for _, gw := range gateways {
		// no route of the kernel's own: it would look like a network of the host's to our IPAM
		a := &netlink.Addr{IPNet: hostNet(gw), Scope: unix.RT_SCOPE_LINK, Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrReplace(l, a); err != nil {
			return fmt.Errorf("give %s the gateway address %s: %w", name, gw, err)
		}
	}
	return reach(l, addrs, gateways, mac)
}

// reach routes the addresses to the device and tells the kernel the MAC behind them. What the host sends there comes
// from the first of sources, or by the kernel's choice.
func reach(l netlink.Link, addrs, sources []netip.Addr, mac net.HardwareAddr) error {
	name := l.Attrs().Name
	for _, addr := range addrs {
		neigh := &netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("set the neighbour %s on %s: %w", addr, name, err)
		}
		route := &netlink.Route{
			LinkIndex: l.Attrs().Index, Dst: hostNet(addr), Scope: netlink.SCOPE_LINK, Protocol: protocol,
		}
		for _, src := range sources {
			if src.Is4() == addr.Is4() {
				route.Src = src.AsSlice()
				break
			}
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", addr, name, err)
		}
	}
	return nil
}

// Refuse makes a prefix unreachable except where a more specific route leads: packets to addresses
// that no endpoint has must not leave the host.
func (Host) Refuse(p netip.Prefix) error {
	if err := netlink.RouteReplace(unreachable(p)); err != nil {
		return fmt.Errorf("make %s unreachable: %w", p, err)
	}
	return nil
}

// Unrefuse undoes Refuse; a missing route is no error.
func (Host) Unrefuse(p netip.Prefix) error {
	if err := netlink.RouteDel(unreachable(p)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the unreachable route %s: %w", p, err)
	}
	return nil
}

// Refused lists the prefixes that Refuse made unreachable.
func (Host) Refused() ([]netip.Prefix, error) {
	var out []netip.Prefix
	filter := &netlink.Route{Protocol: protocol, Type: unix.RTN_UNREACHABLE}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// unreachable has the worst metric: any route that the user sets for the same prefix wins.
func unreachable(p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst: &net.IPNet{
			IP:   p.Masked().Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		},
		Type: unix.RTN_UNREACHABLE, Protocol: protocol, Priority: 4278198272,
	}
}

// Routes lists the destinations that the host has routes to, without default routes and ours.
func (Host) Routes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := routesOf(family)
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 && int(r.Protocol) != protocol && !p.Addr().IsLinkLocalUnicast() {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// OnLink lists the networks that the host is itself on: routes to a device without a router between.
func (Host) OnLink() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			p, ok := prefixOf(r.Dst)
			onLink := r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0 && r.Type == unix.RTN_UNICAST
			if ok && onLink && p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// Addrs lists the addresses of a device that are valid beyond its link.
func (Host) Addrs(name string) ([]netip.Prefix, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find the device %s: %w", name, err)
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
			out = append(out, p)
		}
	}
	return out, nil
}

// HasAddr tells whether addr is an address of the host.
func (Host) HasAddr(addr netip.Addr) (bool, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return false, fmt.Errorf("list the addresses of the host: %w", err)
	}
	for _, a := range addrs {
		if got, ok := netip.AddrFromSlice(a.IP); ok && got.Unmap() == addr {
			return true, nil
		}
	}
	return false, nil
}

// UplinkMTU is the MTU of the device that the default route leads to, or 1500 without one.
func (Host) UplinkMTU() int {
	const ethernet = 1500
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := routesOf(family)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 || r.Type != unix.RTN_UNICAST {
				continue
			}
			index := r.LinkIndex
			if len(r.MultiPath) > 0 {
				index = r.MultiPath[0].LinkIndex
			}
			if l, err := netlink.LinkByIndex(index); err == nil {
				return l.Attrs().MTU
			}
		}
	}
	return ethernet
}

func routesOf(family int) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
}

// whole repeats a listing that a change interrupted: half a list would be taken for the whole truth.
func whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// prefixOf reads a route's destination; a nil one is the default route of some family.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if addr.Is4In6() && size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits), true
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}
