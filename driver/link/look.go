// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/mustang-net/mustang/drift"
)

// Look has the methods of [Host] that change something, and tells what they would change instead of doing it.
type Look struct {
	Host
	report drift.Report
	seen   *seen
}

// NewLook tells report what methods would change that are called on what it returns. It is for one look: addresses, routes and
// neighbours are listed once.
func NewLook(report drift.Report) Look { return Look{report: report, seen: &seen{}} }

// find finds a device of ours that should be up; what is wrong with it is told.
func (l Look) find(name, owner string) (netlink.Link, error) {
	what := "device " + name
	found, err := netlink.LinkByName(name)
	if isNotFound(err) {
		l.report(drift.Difference{
			What: what, Wanted: "a device", Found: drift.Nothing,
			Do: drift.Repair + ", then start the containers of its network again: their end of it is gone, too",
		})
		return nil, drift.ErrReported
	}
	if err != nil {
		return nil, fmt.Errorf("find the device %s: %w", name, err)
	}
	if !ownedBy(found, owner) {
		l.report.Differs(what, "marked as "+alias+owner, fmt.Sprintf("marked as %q", found.Attrs().Alias))
		return nil, drift.ErrReported
	}
	if found.Attrs().Flags&net.FlagUp == 0 {
		l.report.Differs(what, "up", "down")
	}
	return found, nil
}

// CreatePair compares the host's end of a pair.
func (l Look) CreatePair(p Pair) (Device, error) {
	found, err := l.find(p.Host, p.Owner)
	if err != nil {
		return Device{}, err
	}
	l.keptOff(p.Host)
	return device(found), nil
}

// keptOff compares what keepOff sets.
func (l Look) keptOff(name string) {
	for _, key := range []string{"accept_ra", "autoconf"} {
		l.sysctl(filepath.Join(sysctl6, name, key), "0")
	}
}

// sysctl compares a setting; a host without IPv6 lacks some.
func (l Look) sysctl(file, wanted string) {
	found, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist) && strings.HasPrefix(file, sysctl6):
	case err != nil:
		l.report.Differs("sysctl "+file, wanted, err.Error())
	case string(bytes.TrimSpace(found)) != wanted:
		l.report.Differs("sysctl "+file, wanted, string(bytes.TrimSpace(found)))
	}
}

// addrs compares the addresses that a device should have.
func (l Look) addrs(found netlink.Link, wanted []netip.Prefix) error {
	has, err := l.seen.addresses()
	if err != nil {
		return err
	}
	for _, p := range wanted {
		if !has[at{found.Attrs().Index, p.Addr()}] {
			l.report.Missing("address "+p.String()+" on "+found.Attrs().Name, "an address")
		}
	}
	return nil
}

// CreateBridge compares a bridge.
func (l Look) CreateBridge(b Bridge) (Device, error) {
	found, err := l.find(b.Name, b.Owner)
	if err != nil {
		return Device{}, err
	}
	if !bytes.Equal(found.Attrs().HardwareAddr, b.MAC) {
		l.report(drift.Difference{
			What: "device " + b.Name, Wanted: "MAC " + b.MAC.String(), Found: "MAC " + found.Attrs().HardwareAddr.String(),
			Do: fmt.Sprintf("ip link set %s address %s", b.Name, b.MAC),
		})
	}
	l.keptOff(b.Name)
	return device(found), l.addrs(found, b.Gateways)
}

// Plug compares a port of a bridge.
func (l Look) Plug(port, bridge string, addrs []netip.Addr, mac net.HardwareAddr) error {
	p, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", port, err)
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find the bridge %s: %w", bridge, err)
	}
	if p.Attrs().MasterIndex != br.Attrs().Index {
		l.report.Differs("device "+port, "a port of "+bridge, "none of its")
	}
	return l.neighbours(br, addrs, mac)
}

// neighbours compares whom the kernel takes to be behind a device.
func (l Look) neighbours(on netlink.Link, addrs []netip.Addr, mac net.HardwareAddr) error {
	known, err := l.seen.neighbours()
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		what := fmt.Sprintf("neighbour %s on %s", addr, on.Attrs().Name)
		n, found := known[at{on.Attrs().Index, addr}]
		switch {
		case !found:
			l.report.Missing(what, mac.String())
		case !bytes.Equal(n.HardwareAddr, mac) || n.State&netlink.NUD_PERMANENT == 0:
			l.report.Differs(what, mac.String()+" for good", n.String())
		}
	}
	return nil
}

// Connect compares routes, neighbours and gateway addresses of a device.
func (l Look) Connect(name string, addrs, gateways []netip.Addr, mac net.HardwareAddr) error {
	found, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	var own []netip.Prefix
	for _, gw := range gateways {
		own = append(own, netip.PrefixFrom(gw, gw.BitLen()))
	}
	return errors.Join(l.addrs(found, own), l.reached(found, addrs, mac))
}

// Reach compares routes and neighbours of a device.
func (l Look) Reach(name string, addrs, _ []netip.Addr, mac net.HardwareAddr) error {
	found, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	return l.reached(found, addrs, mac)
}

func (l Look) reached(on netlink.Link, addrs []netip.Addr, mac net.HardwareAddr) error {
	routes, err := l.seen.routed()
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if !routes[at{on.Attrs().Index, addr}] {
			l.report.Missing("route "+addr.String(), "dev "+on.Attrs().Name)
		}
	}
	return l.neighbours(on, addrs, mac)
}

// Refuse compares an unreachable route.
func (l Look) Refuse(p netip.Prefix) error {
	refused, err := l.Refused()
	if err == nil && !slices.Contains(refused, p.Masked()) {
		l.report.Missing("route "+p.Masked().String(), "unreachable")
	}
	return err
}

// Unrefuse tells of an unreachable route that should not be.
func (l Look) Unrefuse(p netip.Prefix) error {
	refused, err := l.Refused()
	if err == nil && slices.Contains(refused, p.Masked()) {
		l.report.Leftover("route "+p.Masked().String(), "unreachable")
	}
	return err
}

// RefuseInside is Refuse in the namespace at path.
func (l Look) RefuseInside(path string, p netip.Prefix) error {
	if p.Addr().Is6() {
		return nil // where IPv6 is off there is none, and that is as it should be
	}
	err := l.Do(path, func() error {
		refused, err := l.Refused()
		if err == nil && !slices.Contains(refused, p.Masked()) {
			l.report.Missing("route "+p.Masked().String()+" in "+path, "unreachable")
		}
		return err
	})
	return explain(err)
}

// UnrefuseInside changes nothing.
func (Look) UnrefuseInside(string, netip.Prefix) error { return nil }

// Route compares the forwarding of a device.
func (l Look) Route(name string) error {
	for _, family := range []string{sysctl4, sysctl6} {
		l.sysctl(filepath.Join(family, name, "forwarding"), "1")
	}
	return nil
}

// Forward compares the forwarding of a device.
func (l Look) Forward(name string, ipv6 bool) error {
	l.sysctl(filepath.Join(sysctl4, name, "forwarding"), "1")
	if ipv6 && !forwardsAll6() {
		l.sysctl(filepath.Join(sysctl6, name, "force_forwarding"), "1")
	}
	return nil
}

// CreatePrivateParent compares a private parent.
func (l Look) CreatePrivateParent(owner, name, peer string, _ int) error {
	if _, err := l.find(name, owner); err != nil {
		return err
	}
	if found, err := netlink.LinkByName(peer); err != nil || found.Attrs().Flags&net.FlagUp == 0 {
		l.report.Differs("device "+peer, "up", "down or gone")
	}
	_, ends, err := endsAt(name)
	if err == nil && !ends {
		l.report.Differs("device "+name, "a queue that lets nothing out", "another")
	}
	return err
}

// CreateVLAN compares a parent that may be a VLAN of ours.
func (l Look) CreateVLAN(name, _ string) (bool, error) {
	found, err := netlink.LinkByName(name)
	switch {
	case isNotFound(err):
		l.report.Missing("device "+name, "a parent")
		return false, drift.ErrReported
	case err != nil:
		return false, fmt.Errorf("find the parent %s: %w", name, err)
	case found.Attrs().Flags&net.FlagUp == 0:
		l.report(drift.Difference{What: "device " + name, Wanted: "up", Found: "down", Do: "ip link set " + name + " up"})
	}
	return false, nil
}

// CreateSlave compares a slave that no sandbox has.
func (l Look) CreateSlave(s Slave) (Device, error) {
	found, err := netlink.LinkByName(s.Name)
	if isNotFound(err) {
		l.report.Missing("device "+s.Name, "a slave of "+s.Parent)
		return Device{}, drift.ErrReported
	}
	if err != nil {
		return Device{}, fmt.Errorf("find the device %s: %w", s.Name, err)
	}
	return device(found), nil // down, as engines want it
}

// CreateHostSlave compares the host's own slave of a parent.
func (l Look) CreateHostSlave(s Slave, addrs []netip.Prefix) (Device, error) {
	found, err := l.find(s.Name, s.Owner)
	if err != nil {
		return Device{}, err
	}
	l.keptOff(s.Name)
	if s.changed(found) != nil {
		l.report.Differs("device "+s.Name+" and its neighbours", "mode "+s.Mode+", "+cmp.Or(s.Flag, "bridge"), "another, which a container may have set")
	}
	return device(found), l.addrs(found, addrs)
}

// Delete tells of a device of ours that nothing explains.
func (l Look) Delete(name, owner string) error {
	found, err := netlink.LinkByName(name)
	if err == nil && ownedBy(found, owner) {
		l.report.Leftover("device "+name, "marked as "+alias+owner)
	}
	return nil
}

// Disconnect and Unplug go with a device that Delete tells of.
func (Look) Disconnect(string, []netip.Addr) error { return nil }

// Unplug changes nothing.
func (Look) Unplug(string, []netip.Addr) error { return nil }

// AttachClsact compares the filters of a device.
func (l Look) AttachClsact(name string, ingress, egress Filter) error {
	found, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	for parent, f := range map[uint32]Filter{netlink.HANDLE_MIN_INGRESS: ingress, netlink.HANDLE_MIN_EGRESS: egress} {
		if f.Name == "" {
			continue
		}
		filters, err := filtersOf(found, parent)
		if err != nil {
			return fmt.Errorf("list the filters of %s: %w", name, err)
		}
		what := fmt.Sprintf("program %s on %s", f.Name, name)
		ours := slices.IndexFunc(filters, func(f netlink.Filter) bool { return f.Attrs().Handle == filterHandle })
		switch {
		case ours < 0:
			l.report.Missing(what, "a filter")
		case ours > 0:
			l.report(drift.Difference{
				What: what, Wanted: "to be the first filter", Found: "another runs before it",
				Do: "find out whose it is with `tc filter show dev " + name + "`, and remove it",
			})
		}
	}
	return nil
}

// DetachClsact tells of filters of ours on a device that should have none.
func (l Look) DetachClsact(name string) error {
	found, err := netlink.LinkByName(name)
	if err != nil {
		return nil // and no filters either
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := filtersOf(found, parent)
		if err != nil {
			return fmt.Errorf("list the filters of %s: %w", name, err)
		}
		if slices.ContainsFunc(filters, func(f netlink.Filter) bool { return f.Attrs().Handle == filterHandle }) {
			l.report.Leftover("filter on "+name, "a program of ours")
		}
	}
	return nil
}
