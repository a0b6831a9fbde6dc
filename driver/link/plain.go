// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// What an engine or a person does with devices; mustang itself leaves it to them, and needs it to play their
// part in `mustang bench`.

// Inner is what a device becomes inside a sandbox.
type Inner struct {
	Name    string
	Addrs   []netip.Prefix
	Routes  []netip.Prefix // on-link destinations
	Gateway netip.Addr     // of the default route; it need not lie in a subnet of Addrs
}

// Enter moves a device into the namespace at path, as an engine does. It goes with the namespace.
func (h Host) Enter(name, path string, in Inner) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	defer f.Close()
	if err := netlink.LinkSetNsFd(l, int(f.Fd())); err != nil {
		return fmt.Errorf("move %s into %s: %w", name, path, err)
	}
	err = h.Do(path, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find the device %s: %w", name, err)
		}
		if err := netlink.LinkSetName(l, in.Name); err != nil {
			return fmt.Errorf("rename %s: %w", name, err)
		}
		l.Attrs().Name = in.Name
		if _, err := h.raise(l, in.Addrs); err != nil {
			return err
		}
		return in.route(l)
	})
	if err != nil {
		return fmt.Errorf("set %s up in %s: %w", name, path, err)
	}
	return nil
}

func (in Inner) route(l netlink.Link) error {
	for _, p := range in.Routes {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route %s: %w", p, err)
		}
	}
	if !in.Gateway.IsValid() {
		return nil
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: in.Gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route everything through %s: %w", in.Gateway, err)
	}
	return nil
}

// SetUp sets a device up.
func (Host) SetUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// PlugPlain makes a device a port of a bridge that learns and floods.
func (Host) PlugPlain(port, bridge string) error {
	_, _, err := plug(port, bridge)
	return err
}
