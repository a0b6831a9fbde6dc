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

// mode is one way to connect the endpoints of a network. Repeating a call changes nothing, and each has
// its undo.
type mode interface {
	// raise makes what the network needs before it has endpoints.
	raise(n *Network) error
	lower(n *Network) error
	// connect makes an endpoint's devices and returns the host's end, with the MAC that the gateway has.
	connect(n *Network, e *Endpoint, mac net.HardwareAddr, mtu int) (link.Device, error)
	disconnect(n *Network, e *Endpoint) error
	// end is where the endpoint's programs are attached.
	end() bpf.End
	// leadsOut tells whether the subnet's gateway is the endpoint's default route.
	leadsOut(n *Network) bool
	// guards are the devices besides the endpoints' own that have programs for the network's sake.
	guards(n *Network) []guard
	// onLink are destinations on the endpoint's link besides its network's subnets and VIPs.
	onLink(n *Network) ([]netip.Prefix, error)
}

// guard is a device with programs of a network: the host's own slave, which comes first, and its parent.
type guard struct {
	name string
	end  bpf.End
}

// mode of a network. An endpoint whose network is lost is taken for the simplest.
func (m *Manager) mode(n *Network) mode {
	if n != nil {
		switch n.Options.Mode {
		case ModeBridge:
			return bridge{m.links}
		case ModeMacvlan, ModeIPvlan:
			return slave{m.links}
		case ModeNetkit:
			return pair{m.links, link.TypeNetkit}
		}
	}
	return pair{m.links, link.TypeVeth}
}

// pair routes each endpoint on its own: the host's end of the pair has the gateway's address and a route
// to the container, and between endpoints there is nothing but the programs, or, without eBPF, the host's routing.
type pair struct {
	links Links
	typ   string // of the devices
}

func (p pair) raise(n *Network) error {
	if err := p.links.CheckPair(p.typ); err != nil {
		return err
	}
	for _, subnet := range n.Subnets() {
		if err := p.links.Refuse(subnet); err != nil {
			return err
		}
	}
	return nil
}

func (p pair) lower(n *Network) error {
	var errs []error
	for _, subnet := range n.Subnets() {
		errs = append(errs, p.links.Unrefuse(subnet))
	}
	return errors.Join(errs...)
}

func (p pair) connect(n *Network, e *Endpoint, mac net.HardwareAddr, mtu int) (link.Device, error) {
	dev, err := createPair(p.links, e, link.Pair{Type: p.typ, MTU: mtu, MAC: mac, Open: n.Off()})
	if err != nil {
		return dev, err
	}
	return dev, p.links.Connect(e.HostIf, e.addrs(), n.gatewaysOf(e), mac)
}

// createPair makes an endpoint's pair, with its end of the sandbox there if that is where it is made.
func createPair(links Links, e *Endpoint, p link.Pair) (link.Device, error) {
	p.Owner, p.Host, p.Peer = e.ID, e.HostIf, e.PeerIf
	if e.into != "" {
		p.Into, p.Peer = e.into, e.IfName
	}
	dev, err := links.CreatePair(p)
	e.Inside = err == nil && p.Into != ""
	return dev, err
}

func (p pair) disconnect(_ *Network, e *Endpoint) error { return p.links.Delete(e.HostIf, e.ID) }

func (p pair) end() bpf.End { return hostEnd(p.typ) }

// hostEnd is where the programs of a pair are attached, by the type of its devices.
func hostEnd(typ string) bpf.End {
	if typ == link.TypeNetkit {
		return bpf.NetkitEnd
	}
	return bpf.HostEnd
}

func (pair) leadsOut(n *Network) bool { return n.leadsOut() }

func (pair) guards(*Network) []guard { return nil }

func (pair) onLink(*Network) ([]netip.Prefix, error) { return nil, nil }

// bridge plugs each endpoint's host end into one bridge, which has the gateway's addresses. Containers of
// the host go past it all the same, straight into each other's sandbox.
type bridge struct{ links Links }

// name of the network's bridge.
func (b bridge) name(n *Network) string {
	if n.Options.Bridge != "" {
		return n.Options.Bridge
	}
	return fmt.Sprintf("msb%d", n.Number)
}

func (b bridge) raise(n *Network) error {
	mac := net.HardwareAddr{0x02, 0x6d, 0x73, byte(n.Number >> 16), byte(n.Number >> 8), byte(n.Number)}
	mtu := n.Options.MTU
	if mtu == 0 {
		mtu = b.links.UplinkMTU()
	}
	_, err := b.links.CreateBridge(link.Bridge{Owner: n.ID, Name: b.name(n), MTU: mtu, MAC: mac, Gateways: n.gateways()})
	return err
}

func (b bridge) lower(n *Network) error { return b.links.Delete(b.name(n), n.ID) }

func (b bridge) connect(n *Network, e *Endpoint, mac net.HardwareAddr, mtu int) (link.Device, error) {
	dev, err := createPair(b.links, e, link.Pair{Type: link.TypeVeth, MTU: mtu, MAC: mac})
	if err != nil {
		return dev, err
	}
	if err := b.links.Plug(e.HostIf, b.name(n), e.addrs(), mac); err != nil {
		return dev, err
	}
	br, err := b.links.Find(b.name(n))
	if err != nil {
		return dev, err
	}
	dev.MAC = br.MAC // frames to the host must be the bridge's own
	return dev, nil
}

func (b bridge) disconnect(n *Network, e *Endpoint) error {
	return errors.Join(b.links.Unplug(b.name(n), e.addrs()), b.links.Delete(e.HostIf, e.ID))
}

func (bridge) end() bpf.End { return bpf.HostEnd }

func (bridge) leadsOut(n *Network) bool { return n.leadsOut() }

func (bridge) guards(*Network) []guard { return nil }

func (bridge) onLink(*Network) ([]netip.Prefix, error) { return nil, nil }
