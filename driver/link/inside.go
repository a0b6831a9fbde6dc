// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What an engine does with the devices that a driver gives it, and we do for runtimes that leave it to us.

// ErrDeviceExists says that a sandbox has a device of the name that another shall have.
var ErrDeviceExists = errors.New("the sandbox has a device of this name already")

// Inner is what a device becomes inside a sandbox.
type Inner struct {
	Name  string
	Addrs []netip.Prefix
	// Routes that the sandbox has through another device stay as they are.
	Routes   []netip.Prefix // on-link destinations
	Hops     []Hop          // behind routers, in this order
	Gateway  netip.Addr     // of the default route; it need not lie in a subnet of Addrs
	Gateway6 netip.Addr
}

// Hop is a destination and the router that leads to it.
type Hop struct {
	To  netip.Prefix
	Via netip.Addr
}

// Enter moves a device into the namespace at path, as an engine does. It goes with the namespace.
func (h Host) Enter(name, path string, in Inner) error {
	if err := h.MoveInto(name, path, in.Name); err != nil {
		return err
	}
	return h.SetUpInside(path, in)
}

// MoveInto moves a device into the namespace at path, where it gets another name and stays down. An error is
// [ErrDeviceExists] if the name is taken, and the device then still here.
func (h Host) MoveInto(name, path, as string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", explain(err))
	}
	defer f.Close()
	if err := h.vacant(path, as); err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(l, int(f.Fd())); err != nil {
		return fmt.Errorf("move %s into %s: %w", name, path, err)
	}
	err = h.Do(path, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find the device %s: %w", name, err)
		}
		return netlink.LinkSetName(l, as)
	})
	if err != nil {
		return fmt.Errorf("rename %s to %s in %s: %w", name, as, path, err)
	}
	return nil
}

// vacant tells whether the namespace at path has no device of that name; else the error is [ErrDeviceExists].
func (h Host) vacant(path, name string) error {
	err := h.Do(path, func() error {
		_, err := netlink.LinkByName(name)
		if err == nil {
			return ErrDeviceExists
		}
		if !isNotFound(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for %s in %s: %w", name, path, explain(err))
	}
	return nil
}

// SetUpInside gives a device of the namespace at path its addresses and routes.
func (h Host) SetUpInside(path string, in Inner) error {
	err := h.Do(path, func() error {
		l, err := netlink.LinkByName(in.Name)
		if err != nil {
			return fmt.Errorf("find the device: %w", err)
		}
		if err := in.prepare(); err != nil {
			return err
		}
		for _, p := range in.Addrs {
			a := &netlink.Addr{IPNet: netOf(p), Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrReplace(l, a); err != nil {
				return fmt.Errorf("give it the address %s: %w", p, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set it up: %w", err)
		}
		return in.route(l)
	})
	if err != nil {
		return fmt.Errorf("set %s up in %s: %w", in.Name, path, explain(err))
	}
	return nil
}

// prepare sets what must be so before the device is up: routers announce nothing to it, and it announces its
// addresses to neighbours that know another device behind them. Without an address of IPv6 it takes no part in that.
func (in Inner) prepare() error {
	off := "1"
	for _, p := range in.Addrs {
		if p.Addr().Is6() {
			off = "0"
		}
	}
	for _, s := range []struct{ family, key, value string }{
		{sysctl4, "arp_notify", "1"},
		{sysctl6, "disable_ipv6", off},
		{sysctl6, "accept_ra", "0"},
		{sysctl6, "accept_dad", "0"},
		{sysctl6, "ndisc_notify", "1"},
	} {
		err := os.WriteFile(filepath.Join(s.family, in.Name, s.key), []byte(s.value), 0)
		if err != nil && !(s.family == sysctl6 && errors.Is(err, fs.ErrNotExist)) { // a host without IPv6
			return fmt.Errorf("set its %s: %w", s.key, err)
		}
	}
	return nil
}

func (in Inner) route(l netlink.Link) error {
	index := l.Attrs().Index
	for _, p := range in.Routes {
		r := &netlink.Route{LinkIndex: index, Dst: netOf(p), Scope: netlink.SCOPE_LINK}
		if err := addRoute(r); err != nil {
			return fmt.Errorf("route %s: %w", p, err)
		}
	}
	for _, hop := range in.Hops {
		r := &netlink.Route{LinkIndex: index, Dst: netOf(hop.To), Gw: hop.Via.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := addRoute(r); err != nil {
			return fmt.Errorf("route %s through %s: %w", hop.To, hop.Via, err)
		}
	}
	for _, gw := range []netip.Addr{in.Gateway, in.Gateway6} {
		if !gw.IsValid() {
			continue
		}
		r := &netlink.Route{LinkIndex: index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := addRoute(r); err != nil {
			return fmt.Errorf("route everything through %s: %w", gw, err)
		}
	}
	return nil
}

// addRoute leaves a route that there is through another device: the first one wins, and stays when the second goes.
func addRoute(r *netlink.Route) error {
	if err := netlink.RouteAdd(r); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// RemoveInside removes a device of the owner's from the namespace at path. Where either is gone it is no error.
func (h Host) RemoveInside(path, owner string) error {
	err := h.Do(path, func() error {
		links, err := whole(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list the devices: %w", err)
		}
		for _, l := range links {
			if l.Attrs().Alias == alias+owner {
				return netlink.LinkDel(l)
			}
		}
		return nil
	})
	if err = explain(err); err != nil && !errors.Is(err, ErrNoNetns) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the endpoint's device from the sandbox %s: %w", path, err)
	}
	return nil
}

// RoutesInside lists where the namespace at path has routes to; 0.0.0.0/0 and ::/0 stand for default routes.
func (h Host) RoutesInside(path string) (out []netip.Prefix, err error) {
	err = h.Do(path, func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := routesOf(family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				p, ok := prefixOf(r.Dst)
				if !ok {
					p = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
					if family == netlink.FAMILY_V6 {
						p = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
					}
				}
				out = append(out, p)
			}
		}
		return nil
	})
	if err = explain(err); err != nil {
		return nil, fmt.Errorf("list the routes of the sandbox %s: %w", path, err)
	}
	return out, nil
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
