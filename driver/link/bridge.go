// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge describes a bridge of ours.
type Bridge struct {
	Owner    string // network id, kept in the alias
	Name     string // at most 15 bytes
	MTU      int    // bytes
	MAC      net.HardwareAddr
	Gateways []netip.Prefix // its addresses, with the subnets' lengths
}

// CreateBridge creates a bridge that is up and has the addresses. One of the same owner that is there
// already is taken; one of anybody else is refused.
func (Host) CreateBridge(b Bridge) (Device, error) {
	// a fixed MAC: the kernel would otherwise take the lowest of the ports' each time one comes or goes
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.Name, MTU: b.MTU, HardwareAddr: b.MAC}}
	err := create(br, b.Owner)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = missing("bridge")
	}
	if err != nil {
		return Device{}, fmt.Errorf("create the bridge %s: %w", b.Name, err)
	}
	return Host{}.raise(br, b.Gateways)
}

// raise gives a device of the host's own its addresses and sets it up.
func (Host) raise(l netlink.Link, addrs []netip.Prefix) (Device, error) {
	name := l.Attrs().Name
	if err := keepOff(l); err != nil {
		return Device{}, err
	}
	for _, gw := range addrs {
		a := &netlink.Addr{
			IPNet: &net.IPNet{IP: gw.Addr().AsSlice(), Mask: net.CIDRMask(gw.Bits(), gw.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD,
		}
		if err := netlink.AddrReplace(l, a); err != nil {
			return Device{}, fmt.Errorf("give %s the address %s: %w", name, gw, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return Device{}, fmt.Errorf("set %s up: %w", name, err)
	}
	return Host{}.Find(name)
}

// create adds a device and marks it. One that exists is taken if it is marked as the same owner's, and made anew if it is half made.
func create(l netlink.Link, owner string) error {
	name := l.Attrs().Name
	l.Attrs().Group = group
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EEXIST) {
		found, findErr := netlink.LinkByName(name)
		if findErr != nil {
			return findErr
		}
		if halfMade(found) {
			if err := netlink.LinkDel(found); err != nil {
				return err
			}
			return create(l, owner)
		}
		if found.Attrs().Alias != alias+owner || found.Type() != l.Type() {
			return fmt.Errorf("there is a device of that name already: remove or rename it")
		}
		*l.Attrs() = *found.Attrs()
		return nil
	}
	if err != nil {
		return err
	}
	found, err := netlink.LinkByName(name)
	if err == nil {
		*l.Attrs() = *found.Attrs()
		err = netlink.LinkSetAlias(l, alias+owner)
	}
	if err != nil {
		return errors.Join(err, netlink.LinkDel(l))
	}
	return nil
}

// keepOff keeps the kernel from taking part in IPv6 on a device by itself: without a link-local address nothing
// on the host talks to containers behind our back, and their router advertisements are nobody's (CVE-2020-13401).
func keepOff(l netlink.Link) error {
	name := l.Attrs().Name
	if err := netlink.LinkSetIP6AddrGenMode(l, 1); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("switch address generation off on %s: %w", name, err)
	}
	for _, key := range []string{"accept_ra", "autoconf"} {
		err := os.WriteFile(filepath.Join(sysctl6, name, key), []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // without IPv6 there is nothing to switch off
			return fmt.Errorf("refuse router advertisements on %s: %w", name, err)
		}
	}
	return nil
}

func plug(port, bridge string) (p, br netlink.Link, err error) {
	if p, err = netlink.LinkByName(port); err != nil {
		return nil, nil, fmt.Errorf("find the device %s: %w", port, err)
	}
	if br, err = netlink.LinkByName(bridge); err != nil {
		return nil, nil, fmt.Errorf("find the bridge %s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(p, br); err != nil {
		return nil, nil, fmt.Errorf("plug %s into %s: %w", port, bridge, err)
	}
	return p, br, nil
}

// Plug makes a device a port of a bridge, to which the MAC behind it is known for good: the bridge
// neither learns nor floods unicast there.
func (Host) Plug(port, bridge string, addrs []netip.Addr, mac net.HardwareAddr) error {
	p, br, err := plug(port, bridge)
	if err != nil {
		return err
	}
	for _, set := range []func(netlink.Link, bool) error{netlink.LinkSetLearning, netlink.LinkSetFlood} {
		if err := set(p, false); err != nil {
			return fmt.Errorf("stop %s from learning and flooding: %w", port, err)
		}
	}
	fdb := &netlink.Neigh{
		LinkIndex: p.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: mac, // static; a permanent one would be the bridge's own address
	}
	if err := netlink.NeighSet(fdb); err != nil {
		return fmt.Errorf("tell %s who is behind %s: %w", bridge, port, err)
	}
	for _, addr := range addrs {
		neigh := &netlink.Neigh{
			LinkIndex: br.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("set the neighbour %s on %s: %w", addr, bridge, err)
		}
	}
	return nil
}

// Unplug forgets the neighbours that Plug set on the bridge; the port itself goes with its device.
func (Host) Unplug(bridge string, addrs []netip.Addr) error {
	br, err := netlink.LinkByName(bridge)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the bridge %s: %w", bridge, err)
	}
	for _, addr := range addrs {
		neigh := &netlink.Neigh{LinkIndex: br.Attrs().Index, IP: addr.AsSlice()}
		if err := netlink.NeighDel(neigh); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget the neighbour %s on %s: %w", addr, bridge, err)
		}
	}
	return nil
}
