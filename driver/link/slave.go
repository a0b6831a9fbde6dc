// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Slave describes a macvlan or ipvlan device on a parent.
type Slave struct {
	Owner  string // endpoint or network id, kept in the alias
	Name   string // at most 15 bytes
	Parent string
	Type   string           // macvlan or ipvlan
	Mode   string           // macvlan: bridge, private, vepa, passthru; ipvlan: l2, l3, l3s
	Flag   string           // ipvlan: bridge, private, vepa
	MTU    int              // bytes; 0 for the parent's
	MAC    net.HardwareAddr // macvlan only; an ipvlan slave has its parent's
}

var macvlanModes = map[string]netlink.MacvlanMode{
	"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
	"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

var ipvlanModes = map[string]netlink.IPVlanMode{
	"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S,
}

var ipvlanFlags = map[string]netlink.IPVlanFlag{
	"bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA,
}

// kernelOptions are what a kernel is built with to have a type of device.
var kernelOptions = map[string]string{
	"macvlan": "CONFIG_MACVLAN", "ipvlan": "CONFIG_IPVLAN", "vlan": "CONFIG_VLAN_8021Q", "netkit": "CONFIG_NETKIT",
	"veth": "CONFIG_VETH", "bridge": "CONFIG_BRIDGE",
}

func missing(kind string) error {
	return fmt.Errorf("this kernel has no %s: it needs %s: use another kernel, mode or parent", kind, kernelOptions[kind])
}

// CreateSlave creates a slave and leaves it down, as engines want it. One of the same owner that is
// there already is taken.
func (Host) CreateSlave(s Slave) (Device, error) {
	parent, err := netlink.LinkByName(s.Parent)
	if err != nil {
		return Device{}, fmt.Errorf("find the parent %s: %w: ip link lists the devices", s.Parent, err)
	}
	attrs := netlink.LinkAttrs{Name: s.Name, ParentIndex: parent.Attrs().Index, MTU: s.MTU}
	var l netlink.Link
	if s.Type == "macvlan" {
		attrs.HardwareAddr = s.MAC
		l = &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[s.Mode]}
	} else {
		l = &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[s.Mode], Flag: ipvlanFlags[s.Flag]}
	}
	err = create(l, s.Owner)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		err = missing(s.Type)
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: the parent carries slaves of another type or mode: one parent cannot serve macvlan and ipvlan: give this network another, such as a VLAN", err)
	case errors.Is(err, unix.EINVAL) && s.Mode == "passthru":
		err = fmt.Errorf("%w: the parent has a slave already, and passthru gives all of it to one container: stop that one, or use macvlan_mode=bridge", err)
	}
	if err != nil {
		return Device{}, fmt.Errorf("create the %s slave %s of %s: %w", s.Type, s.Name, s.Parent, err)
	}
	return device(l), nil
}

// changed is what an ipvlan device must become again, nil if it is as it should be. All slaves of a parent have one mode,
// and whoever has CAP_NET_ADMIN where one of them is changes that of all.
func (s Slave) changed(found netlink.Link) *netlink.IPVlan {
	is, ok := found.(*netlink.IPVlan)
	if !ok || is.Mode == ipvlanModes[s.Mode] && is.Flag == ipvlanFlags[s.Flag] {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.ParentIndex = is.Name, is.Index, is.ParentIndex
	return &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[s.Mode], Flag: ipvlanFlags[s.Flag]}
}

// CreateHostSlave creates the host's own slave of a parent, up and with the addresses: a parent and its
// slaves cannot talk to each other, slaves can. Addresses that it had otherwise are taken from it.
func (h Host) CreateHostSlave(s Slave, addrs []netip.Prefix) (Device, error) {
	if _, err := h.CreateSlave(s); err != nil {
		return Device{}, err
	}
	l, err := netlink.LinkByName(s.Name)
	if err != nil {
		return Device{}, fmt.Errorf("find the device %s: %w", s.Name, err)
	}
	if changed := s.changed(l); changed != nil {
		if err := netlink.LinkModify(changed); err != nil {
			return Device{}, fmt.Errorf("give %s and its neighbours their mode back: %w", s.Name, err)
		}
	}
	dev, err := h.raise(l, addrs)
	if err != nil {
		return dev, err
	}
	had, err := h.Addrs(s.Name)
	if err != nil {
		return dev, err
	}
	for _, p := range had {
		if slices.Contains(addrs, p) {
			continue
		}
		if err := netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}); err != nil {
			return dev, fmt.Errorf("take the address %s from %s: %w", p, s.Name, err)
		}
	}
	return dev, nil
}

// CreatePrivateParent creates a parent that leads nowhere: one end of a veth pair, whose queue drops what it gets.
// Slaves hand to each other without it; the pair's other end would hand it to the host's stack, judged by nobody. (A
// dummy device would do where the kernel has one, and a bridge without ports has no carrier, without which slaves do
// not send.)
func (h Host) CreatePrivateParent(owner, name, peer string, mtu int) error {
	if _, err := h.CreatePair(Pair{Owner: owner, Type: TypeVeth, Host: name, Peer: peer, MTU: mtu, MAC: randomMAC()}); err != nil {
		return err
	}
	l, err := netlink.LinkByName(peer)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", peer, err)
	}
	// the host must not answer there for addresses that it has elsewhere
	if err := netlink.LinkSetARPOff(l); err != nil {
		return fmt.Errorf("switch ARP off on %s: %w", peer, err)
	}
	if err := endAt(name); err != nil {
		return err
	}
	_, err = h.raise(l, nil)
	return err
}

// blackhole is the kernel's queue that drops everything.
const blackhole = "blackhole"

// endAt lets nothing out by a device.
func endAt(name string) error {
	l, ends, err := endsAt(name)
	if err != nil || ends {
		return err
	}
	drop := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT}, QdiscType: blackhole,
	}
	if err := netlink.QdiscReplace(drop); err != nil {
		return fmt.Errorf("let nothing out by %s: %w", name, err)
	}
	return nil
}

// endsAt tells whether nothing gets out by a device.
func endsAt(name string) (l netlink.Link, ends bool, err error) {
	if l, err = netlink.LinkByName(name); err != nil {
		return nil, false, fmt.Errorf("find the device %s: %w", name, err)
	}
	queues, err := whole(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(l) })
	if err != nil {
		return nil, false, fmt.Errorf("look at the queue of %s: %w", name, err)
	}
	return l, slices.ContainsFunc(queues, func(q netlink.Qdisc) bool {
		return q.Attrs().Parent == netlink.HANDLE_ROOT && q.Type() == blackhole
	}), nil
}

// Reach is [Host.Connect] for a device that has its addresses, or whose host sends from those of another.
func (Host) Reach(name string, addrs, sources []netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	return reach(l, addrs, sources, mac)
}

// Disconnect removes the routes and neighbours that Connect and Reach set on a device which stays.
func (Host) Disconnect(name string, addrs []netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	for _, addr := range addrs {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: hostNet(addr), Scope: netlink.SCOPE_LINK, Protocol: protocol}
		if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route of %s to %s: %w", addr, name, err)
		}
		neigh := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: addr.AsSlice()}
		if err := netlink.NeighDel(neigh); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget the neighbour %s on %s: %w", addr, name, err)
		}
	}
	return nil
}

// OwnInside finds a device of ours by its owner in the namespace at path, where engines rename it.
func (h Host) OwnInside(path, owner string) (dev Device, err error) {
	err = h.Do(path, func() error {
		links, err := whole(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list the devices: %w", err)
		}
		for _, l := range links {
			if l.Attrs().Alias == alias+owner {
				dev = device(l)
				return nil
			}
		}
		return ErrNoDevice
	})
	if err = explain(err); err != nil {
		return dev, fmt.Errorf("find the endpoint's device in the sandbox %s: %w", path, err)
	}
	return dev, nil
}

// CheckParent refuses a device that cannot be the parent of slaves with an MTU (0: its own), saying why.
func (Host) CheckParent(name string, mtu int) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return fmt.Errorf("parent %s: there is no such device: `ip link` lists them", name)
	}
	if err != nil {
		return fmt.Errorf("parent %s: %w", name, err)
	}
	if _, err := os.Stat(filepath.Join("/sys/class/net", name, "phy80211")); err == nil {
		return fmt.Errorf("parent %s is wireless, which takes frames of its own MAC only: use mode veth", name)
	}
	if l.Attrs().Flags&net.FlagLoopback != 0 {
		return fmt.Errorf("parent %s is the loopback device: choose one that leads out, or none for a private network", name)
	}
	if l.Attrs().MasterIndex != 0 {
		return fmt.Errorf("parent %s is a port of another device (bridge or bond): give that as the parent", name)
	}
	if mtu > l.Attrs().MTU {
		return fmt.Errorf("the network's MTU %d is above %d, that of the parent %s: choose a smaller one", mtu, l.Attrs().MTU, name)
	}
	return nil
}

// CreateVLAN creates BASE.ID on its base if it is missing and reports whether it did.
func (Host) CreateVLAN(name, owner string) (bool, error) {
	if _, err := netlink.LinkByName(name); err == nil {
		return false, nil
	}
	base, tag, ok := strings.Cut(name, ".")
	id, err := strconv.Atoi(tag)
	if !ok || err != nil || id < 1 || id > 4094 {
		return false, fmt.Errorf("parent %s: there is no such device, and it does not name a VLAN (eth0.50, with a tag from 1 to 4094)", name)
	}
	lower, err := netlink.LinkByName(base)
	if err != nil {
		return false, fmt.Errorf("parent %s: there is no device %s to put a VLAN on: `ip link` lists them", name, base)
	}
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: lower.Attrs().Index}, VlanId: id}
	err = create(vlan, owner)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = missing("vlan")
	}
	if err != nil {
		return false, fmt.Errorf("create the VLAN %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(vlan); err != nil {
		return true, fmt.Errorf("set %s up: %w", name, err)
	}
	return true, nil
}
