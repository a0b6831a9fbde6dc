// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// slave gives each endpoint a macvlan or ipvlan device on a parent: a device of the host that leads out,
// or a private one that leads nowhere. There is no host's end: the programs sit on the slave, attached
// before the engine moves it, and the host reaches containers through a slave of its own.
type slave struct {
	links    Links
	datapath Datapath
}

// The devices of a network: its private parent with the other end of that, and the host's slave.
func (slave) private(n *Network) (name, peer string) {
	return fmt.Sprintf("mpa%d", n.Number), fmt.Sprintf("mpb%d", n.Number)
}

func (slave) host(n *Network) string { return fmt.Sprintf("msh%d", n.Number) }

// hostReaches tells whether slaves of the network's mode talk to each other on the host.
func (slave) hostReaches(n *Network) bool {
	return n.Options.MacvlanMode == "bridge" || n.Options.IPvlanFlag == "bridge"
}

// hostAddrs are the addresses of the host's slave. On a private parent the host is the gateway. On a LAN,
// where that is a router's address, the host answers from its own as macvlan delivers by MAC; ipvlan
// delivers by address, so that its slave needs one, which is link-local and the network's alone.
func (slave) hostAddrs(n *Network) []netip.Prefix {
	if n.Options.Parent == "" {
		return n.gateways()
	}
	if n.Options.Mode == ModeIPvlan {
		return []netip.Prefix{netip.PrefixFrom(linkLocal(n), 32)}
	}
	return nil
}

// linkLocal is an address of RFC 3927 that no other network of the host has.
func linkLocal(n *Network) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 64 + byte(n.Number>>8)&63, byte(n.Number)})
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
	dev, err := s.links.CreateHostSlave(s.device(n, n.ID, s.host(n), nil), s.hostAddrs(n))
	if err != nil {
		return err
	}
	if n.Off() {
		return nil // the host's table guards it
	}
	// what the host forwards from elsewhere must not come to the containers past the other modes' guards
	if err := s.datapath.PutInterface(bpf.Interface{IfIndex: dev.Index, Network: n.Number, Strict: true, MAC: dev.MAC}); err != nil {
		return err
	}
	return explainTCX(s.datapath.AttachLXC(s.host(n), dev.Index, bpf.HostSlave))
}

// guard is the host's slave.
func (s slave) guard(n *Network) string { return s.host(n) }

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
	return s.links.CheckParent(n.Options.Parent)
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

func (s slave) lower(n *Network) error {
	// a VLAN is removed only if it is ours
	dev, err := s.links.Find(s.host(n))
	switch {
	case err == nil:
		if err := s.datapath.DeleteInterface(dev.Index); err != nil {
			return err
		}
	case !errors.Is(err, link.ErrNoDevice):
		return err // whose index must not be lost
	}
	return errors.Join(s.links.Delete(s.host(n), n.ID), s.datapath.DetachLXC(s.host(n)),
		s.links.Delete(s.parent(n), n.ID))
}

func (s slave) connect(n *Network, e *Endpoint, mac net.HardwareAddr, _ int) (link.Device, error) {
	dev := link.Device{Index: e.Index, MAC: mac}
	if e.Sandbox == "" { // afterwards the engine has it
		var err error
		if dev, err = s.links.CreateSlave(s.device(n, e.ID, e.PeerIf, mac)); err != nil {
			return dev, err
		}
		if n.Options.Mode == ModeMacvlan {
			dev.MAC = mac
		}
	}
	if n.Options.Parent == "" || !s.hostReaches(n) {
		return dev, nil
	}
	var from []netip.Addr
	for _, p := range s.hostAddrs(n) {
		from = append(from, p.Addr())
	}
	return dev, s.links.Connect(s.host(n), e.addrs(), from, dev.MAC)
}

func (s slave) disconnect(n *Network, e *Endpoint) error {
	err := s.links.Delete(e.PeerIf, e.ID)
	if n != nil && n.Options.Parent != "" {
		err = errors.Join(err, s.links.Disconnect(s.host(n), e.addrs()))
	}
	return err
}

func (slave) end() bpf.End { return bpf.SandboxEnd }

// A LAN has a router, and the engine's own network need not lead out.
// An ipvlan above L2 has no router on its link, so that only the engine's own network leads out.
func (slave) leadsOut(n *Network) bool {
	l3 := n.Options.Mode == ModeIPvlan && n.Options.IPvlanMode != "l2"
	return n.Options.Parent != "" && !n.Internal && !l3
}

// onLink are destinations that the endpoint reaches through its device besides those of every mode.
func (s slave) onLink(n *Network) []netip.Prefix {
	if n.Options.Parent == "" || !s.hostReaches(n) {
		return nil
	}
	return s.hostAddrs(n)
}
