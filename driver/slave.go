// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// slave gives each endpoint a macvlan or ipvlan device on a parent: a device of the host that leads out,
// or a private one that leads nowhere. There is no host's end: the programs sit on the slave, attached
// before the engine moves it, and the host reaches containers through a slave of its own.
type slave struct{ links Links }

// The devices of a network: its private parent with the other end of that, and the host's slave.
func (slave) private(n *Network) (name, peer string) {
	return fmt.Sprintf("mpa%d", n.Number), fmt.Sprintf("mpb%d", n.Number)
}

func (slave) host(n *Network) string { return fmt.Sprintf("msh%d", n.Number) }

// hostReaches tells whether slaves of the network's mode talk to each other on the host.
func (slave) hostReaches(n *Network) bool {
	return n.Options.MacvlanMode == "bridge" || n.Options.IPvlanFlag == "bridge"
}

// hostAddrs are the addresses of the host's slave. On a private parent the host is the gateway. On a LAN, where
// that is a router's address, the host answers from its own: IPv4 answers on any device for any of the host's
// addresses, IPv6 for those of the very device only, so that the slave has the parent's. ours are addresses
// that nobody else has, to which containers get a route: where the parent has none on the LAN, and for ipvlan,
// which delivers by address.
func (s slave) hostAddrs(n *Network) (addrs, ours []netip.Prefix, err error) {
	if n.Options.Parent == "" {
		return n.gateways(), nil, nil
	}
	of, err := s.links.Addrs(n.Options.Parent)
	if err != nil {
		return nil, nil, err
	}
	has4 := false
	for _, p := range of {
		if _, onLAN := n.subnetOf(p.Addr()); !onLAN {
			continue
		}
		has4 = has4 || p.Addr().Is4()
		if p.Addr().Is6() {
			addrs = append(addrs, netip.PrefixFrom(p.Addr(), 128))
		}
	}
	if len(n.IPv4) > 0 && (!has4 || n.Options.Mode == ModeIPvlan) {
		ours = append(ours, netip.PrefixFrom(linkLocal(n), 32))
	}
	if len(n.IPv6) > 0 && len(addrs) == 0 {
		ours = append(ours, netip.PrefixFrom(uniqueLocal(n), 128))
	}
	return append(addrs, ours...), ours, nil
}

// linkLocal is an address of RFC 3927 that none of the 16,383 networks made before or after has.
func linkLocal(n *Network) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 64 + byte(n.Number>>8)&63, byte(n.Number)})
}

// uniqueLocal is one of RFC 4193.
func uniqueLocal(n *Network) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x6d, 0x73, 0x74, 0, 0x20, 12: byte(n.Number >> 24), 13: byte(n.Number >> 16), 14: byte(n.Number >> 8), 15: byte(n.Number)})
}

func (s slave) parent(n *Network) string {
	if n.Options.Parent != "" {
		return n.Options.Parent
	}
	name, _ := s.private(n)
	return name
}

func (s slave) raise(n *Network) error {
	if err := s.raiseParent(n); err != nil {
		return err
	}
	if !s.hostReaches(n) {
		return nil
	}
	addrs, _, err := s.hostAddrs(n)
	if err != nil {
		return err
	}
	_, err = s.links.CreateHostSlave(s.device(n, n.ID, s.host(n), nil), addrs)
	return err
}

// lan is what the host's slave of a network knows of it.
type lan struct {
	addrs []netip.Prefix // of the parent
	slave int            // its own ifindex
}

// renewSlaves makes the host's slaves on LANs agree with the addresses of their parents, and makes them anew where they went with
// their parent, and another of its name has come. Without a change it does nothing, so that whoever watches the host's addresses
// and devices may call it for each.
func (m *Manager) renewSlaves() error {
	var errs []error
	for _, n := range m.networks {
		s, ok := m.mode(n).(slave)
		if !ok || n.Partial || n.Options.Parent == "" {
			continue
		}
		if _, err := m.links.Find(n.Options.Parent); errors.Is(err, link.ErrNoDevice) && s.raiseParent(n) != nil {
			continue // it may come back
		}
		if !s.hostReaches(n) {
			continue // only the LAN does
		}
		if err := m.renewLAN(s, n); err != nil {
			errs = append(errs, fmt.Errorf("renew the addresses of %s: %w", s.host(n), err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) renewLAN(s slave, n *Network) error {
	known := m.lans[n.ID]
	now, err := m.links.Addrs(n.Options.Parent)
	if err != nil {
		return err
	}
	dev, err := m.links.Find(s.host(n))
	if err != nil && !errors.Is(err, link.ErrNoDevice) {
		return err
	}
	gone := err != nil || known.slave != 0 && known.slave != dev.Index // another has no programs yet
	if gone || !slices.Equal(now, known.addrs) {
		if err := m.renewSlave(s, n); err != nil {
			return err
		}
	}
	if gone {
		if dev, err = m.links.Find(s.host(n)); err != nil {
			return err
		}
		if err := m.guardAnew(n, known.slave); err != nil {
			return err
		}
	}
	if m.lans == nil {
		m.lans = map[string]lan{}
	}
	m.lans[n.ID] = lan{now, dev.Index}
	return nil
}

// guardAnew is guardNetwork for devices that are others than before; had is the ifindex of the host's slave then, or 0.
func (m *Manager) guardAnew(n *Network, had int) error {
	if n.Off() {
		return nil
	}
	if had != 0 {
		if err := m.datapath.DeleteInterface(had); err != nil {
			return err
		}
	}
	return m.guardNetwork(n)
}

func (m *Manager) renewSlave(s slave, n *Network) error {
	if err := s.raise(n); err != nil {
		return err
	}
	for _, e := range m.endpoints {
		if e.NetworkID != n.ID || e.Partial {
			continue
		}
		mac, err := net.ParseMAC(e.MAC)
		if err == nil {
			err = s.reach(n, e, mac)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// guards are the host's slave, which containers send to the host by and are sent to by, and what ipvlan hands to
// its parent instead: a private one, or one that leads out and that clients of published ports come by.
func (s slave) guards(n *Network) []guard {
	if !s.hostReaches(n) {
		return nil
	}
	out := []guard{{s.host(n), bpf.HostSlave}}
	switch {
	case n.Options.Parent == "" && n.Options.Mode == ModeIPvlan:
		out = append(out, guard{s.parent(n), bpf.ParentEnd})
	case n.Options.Parent != "" && n.Options.Publish == PublishEBPF:
		out = append(out, guard{s.parent(n), bpf.UplinkEnd})
	}
	return out
}

func (s slave) raiseParent(n *Network) error {
	if n.Options.Parent == "" {
		name, peer := s.private(n)
		mtu := n.Options.MTU
		if mtu == 0 {
			mtu = s.links.UplinkMTU()
		}
		return s.links.CreatePrivateParent(n.ID, name, peer, mtu)
	}
	if _, err := s.links.CreateVLAN(n.Options.Parent, n.ID); err != nil {
		return err
	}
	return s.links.CheckParent(n.Options.Parent, n.Options.MTU)
}

func (s slave) device(n *Network, owner, name string, mac net.HardwareAddr) link.Slave {
	d := link.Slave{
		Owner: owner, Name: name, Parent: s.parent(n), Type: n.Options.Mode, Mode: n.Options.MacvlanMode,
		MTU: n.Options.MTU, MAC: mac,
	}
	if n.Options.Mode == ModeIPvlan {
		d.Mode, d.Flag, d.MAC = n.Options.IPvlanMode, n.Options.IPvlanFlag, nil
	}
	return d
}

// lower removes the parent only if it is ours: a private one or a VLAN that we made.
func (s slave) lower(n *Network) error {
	return errors.Join(s.links.Delete(s.host(n), n.ID), s.links.Delete(s.parent(n), n.ID))
}

func (s slave) connect(n *Network, e *Endpoint, mac net.HardwareAddr, mtu int) (link.Device, error) {
	dev := link.Device{Index: e.Index, MAC: mac}
	if e.Sandbox == "" { // afterwards the engine has it
		d := s.device(n, e.ID, e.PeerIf, mac)
		if n.Options.Parent == "" { // which has the MTU that the uplink had when the network was made
			parent, err := s.links.Find(s.parent(n))
			if err != nil {
				return dev, err
			}
			d.MTU = min(mtu, parent.MTU)
		}
		var err error
		if dev, err = s.links.CreateSlave(d); err != nil {
			return dev, err
		}
		if n.Options.Mode == ModeMacvlan {
			dev.MAC = mac
		}
	}
	return dev, s.reach(n, e, dev.MAC)
}

// reach lets the host send to an endpoint on a LAN, from an address that the endpoint answers to on its link: one of
// the host's slave, or the parent's.
func (s slave) reach(n *Network, e *Endpoint, mac net.HardwareAddr) error {
	if n.Options.Parent == "" || !s.hostReaches(n) {
		return nil
	}
	_, ours, err := s.hostAddrs(n)
	if err != nil {
		return err
	}
	of, err := s.links.Addrs(n.Options.Parent)
	if err != nil {
		return err
	}
	var from []netip.Addr
	for _, p := range slices.Concat(ours, of) {
		if _, onLAN := n.subnetOf(p.Addr()); onLAN || slices.Contains(ours, p) {
			from = append(from, p.Addr())
		}
	}
	return s.links.Reach(s.host(n), e.addrs(), from, mac)
}

func (s slave) disconnect(n *Network, e *Endpoint) error {
	err := s.links.Delete(e.PeerIf, e.ID)
	if n != nil && n.Options.Parent != "" {
		err = errors.Join(err, s.links.Disconnect(s.host(n), e.addrs()))
	}
	return err
}

func (slave) end() bpf.End { return bpf.SandboxEnd }

// leadsOut: a LAN has a router, so that the engine's docker_gwbridge need not lead out; on a private parent the
// host's slave is one. An ipvlan above L2 has none on its link.
func (slave) leadsOut(n *Network) bool {
	if n.Options.Parent == "" {
		return n.leadsOut() && n.Options.unpublishable() == ""
	}
	return !n.Internal && !n.Options.aboveL2()
}

func (o *Options) aboveL2() bool { return o.Mode == ModeIPvlan && o.IPvlanMode != "l2" }

// unpublishable says why our programs cannot publish ports in the mode, nor lead out; "" if they can.
func (o *Options) unpublishable() string {
	switch {
	case o.aboveL2():
		return fmt.Sprintf("ipvlan_mode=%s routes by the host's tables past the programs", o.IPvlanMode)
	case o.Mode == ModeMacvlan && o.MacvlanMode != "bridge":
		return fmt.Sprintf("with macvlan_mode=%s the host does not reach containers", o.MacvlanMode)
	case o.Mode == ModeIPvlan && o.IPvlanFlag != "bridge":
		return fmt.Sprintf("with ipvlan_flag=%s the host does not reach containers", o.IPvlanFlag)
	}
	return ""
}

// publishDefault is who publishes in the mode if nobody said: on a LAN whose containers the host does not reach, only
// the LAN reaches them.
func (o *Options) publishDefault() string {
	switch {
	case o.EBPF == "off":
		return PublishGWBridge
	case o.unpublishable() == "":
		return PublishEBPF
	case o.Parent != "" && !o.aboveL2():
		return PublishOff
	}
	return PublishGWBridge
}

// onLink are the host's addresses on a LAN that lie in no subnet.
func (s slave) onLink(n *Network) ([]netip.Prefix, error) {
	if n.Options.Parent == "" || !s.hostReaches(n) {
		return nil, nil
	}
	_, ours, err := s.hostAddrs(n)
	return ours, err
}
