// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Endpoint is what the datapath knows of an address: where it is and who may reach it.
type Endpoint struct {
	Addr     netip.Addr
	IfIndex  int    // of the host's end
	Network  uint32 // 0 for a sandbox made by hand: host scope
	Redirect bool   // may be delivered straight into the peer
	Host     bool   // an address of the host itself
	Open     bool   // reached from outside at its own address, all of it (gateway_mode nat-unprotected)
	Ping     bool   // answers ping from outside there (gateway_mode routed)
	MAC      net.HardwareAddr
	HostMAC  net.HardwareAddr // of the host's end, or of Via
	Via      int              // ifindex of what leads to it instead: the host's own slave beside a slave, or a host's end with a queue; 0 for none
	Parent   int              // ifindex of a slave's parent that leads out; 0 for none
}

// Interface is the host's end of an endpoint, the host's own slave of a parent, or a private parent.
type Interface struct {
	IfIndex  int
	Network  uint32
	Strict   bool // only the endpoint's own addresses may send, only its network receives
	Egress   bool // what is for nobody on this host leaves it by an uplink
	Masq4    bool // with an address of the uplink's as its source
	Masq6    bool
	Gateway4 netip.Addr // for whom it answers ARP and ND; the zero Addr for none
	Gateway6 netip.Addr
	MAC      net.HardwareAddr
	Via      int  // ifindex of the host's own slave, on itself and on its private parent
	Private  bool // nobody is on the parent but endpoints of the network
	// Isolated4 and Isolated6 keep endpoints and the host from each other, by family.
	Isolated4, Isolated6 bool
}

// Sandbox is a network namespace whose sockets are load-balanced.
type Sandbox struct {
	Cookie      uint64
	SocketLB    bool   // at connect time; per packet works regardless
	AllNetworks bool   // the host: reaches every network's VIPs
	Tracked     bool   // every listener in it is in the map, so that a missing one means nobody listens
	DNSPort     uint16 // of our resolver on 127.0.0.11 in it; 0 for none
}

// PutEndpoint writes the entry of an address.
func (d *Datapath) PutEndpoint(e Endpoint) error {
	key, value := addrOf(e.Addr), e.value()
	if err := d.maps["endpoints"].Put(&key, &value); err != nil {
		return fmt.Errorf("write the endpoint %s: %w", e.Addr, full(err))
	}
	return nil
}

func (e Endpoint) value() mstEndpoint {
	value := mstEndpoint{Ifindex: uint32(e.IfIndex), Network: e.Network, Via: uint32(e.Via), Parent: uint32(e.Parent)}
	copy(value.Mac[:], e.MAC)
	copy(value.HostMac[:], e.HostMAC)
	for _, f := range []struct {
		on   bool
		flag uint32
	}{{e.Redirect, epRedirect}, {e.Host, epHost}, {e.Open, epOpen}, {e.Ping, epPing}} {
		if f.on {
			value.Flags |= f.flag
		}
	}
	return value
}

// DeleteEndpoint removes the entry of an address and its flows, which are not the next owner's. A missing
// one is no error.
func (d *Datapath) DeleteEndpoint(addr netip.Addr) error {
	key := addrOf(addr)
	if err := remove(d.maps["endpoints"], &key); err != nil {
		return fmt.Errorf("remove the endpoint %s: %w", addr, err)
	}
	return d.endFlows(key)
}

// DeleteHostAddr removes the entry of an address that is not the host's any more. Its flows end by themselves.
func (d *Datapath) DeleteHostAddr(addr netip.Addr) error {
	key := addrOf(addr)
	if err := remove(d.maps["endpoints"], &key); err != nil {
		return fmt.Errorf("remove the host's address %s: %w", addr, err)
	}
	return nil
}

// endFlows forgets the per-packet and the masqueraded flows from and to an address.
func (d *Datapath) endFlows(addr mstAddr) error {
	for _, name := range []string{"ct", "snat"} {
		err := removeWhere(d.maps[name], func(key mstTuple, value mstCt) bool {
			return key.Saddr == addr || key.Daddr == addr || value.Saddr == addr || value.Daddr == addr
		})
		if err != nil {
			return fmt.Errorf("end the flows of %s: %w", addr.ip(), err)
		}
	}
	return nil
}

// Endpoints reads every endpoint, in no order.
func (d *Datapath) Endpoints() ([]Endpoint, error) {
	var out []Endpoint
	var key mstAddr
	var v mstEndpoint
	entries := d.maps["endpoints"].Iterate()
	for entries.Next(&key, &v) {
		out = append(out, Endpoint{
			Addr: key.ip(), IfIndex: int(v.Ifindex), Network: v.Network,
			Redirect: v.Flags&epRedirect != 0, Host: v.Flags&epHost != 0,
			Open: v.Flags&epOpen != 0, Ping: v.Flags&epPing != 0,
			MAC: append(net.HardwareAddr{}, v.Mac[:]...), HostMAC: append(net.HardwareAddr{}, v.HostMac[:]...),
			Via: int(v.Via), Parent: int(v.Parent),
		})
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_endpoints: %w", err)
	}
	return out, nil
}

// PutInterface writes the entry of a host end.
func (d *Datapath) PutInterface(i Interface) error {
	key, value := uint32(i.IfIndex), i.value()
	if err := d.maps["interfaces"].Put(&key, &value); err != nil {
		return fmt.Errorf("write the interface %d: %w", i.IfIndex, full(err))
	}
	return nil
}

func (i Interface) value() mstInterface {
	value := mstInterface{Network: i.Network, Gateway4: addrOf(i.Gateway4), Gateway6: addrOf(i.Gateway6), Via: uint32(i.Via)}
	copy(value.Mac[:], i.MAC)
	for _, f := range []struct {
		on   bool
		flag uint32
	}{
		{i.Strict, ifStrict}, {i.Egress, ifEgress}, {i.Masq4, ifMasquerade4}, {i.Masq6, ifMasquerade6}, {i.Private, ifPrivate},
		{i.Isolated4, ifIsolated4}, {i.Isolated6, ifIsolated6},
	} {
		if f.on {
			value.Flags |= f.flag
		}
	}
	return value
}

// DeleteInterface removes the entry of a host end; a missing one is no error.
func (d *Datapath) DeleteInterface(ifindex int) error {
	key := uint32(ifindex)
	if err := remove(d.maps["interfaces"], &key); err != nil {
		return fmt.Errorf("remove the interface %d: %w", ifindex, err)
	}
	return nil
}

// Interfaces lists the ifindexes of the host ends known.
func (d *Datapath) Interfaces() ([]int, error) {
	var out []int
	var key uint32
	var v mstInterface
	entries := d.maps["interfaces"].Iterate()
	for entries.Next(&key, &v) {
		out = append(out, int(key))
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_interfaces: %w", err)
	}
	return out, nil
}

// PutSandbox switches the socket hooks on in a sandbox, or changes how they work there.
func (d *Datapath) PutSandbox(s Sandbox) error {
	key, value := mstSandboxKey{Cookie: s.Cookie}, s.value()
	if err := d.maps["sandboxes"].Put(&key, &value); err != nil {
		return fmt.Errorf("write the sandbox %d: %w", s.Cookie, full(err))
	}
	return nil
}

func (s Sandbox) value() mstSandbox {
	value := mstSandbox{DnsPort: be(s.DNSPort)}
	for _, f := range []struct {
		on   bool
		flag uint32
	}{{s.SocketLB, sbSocketLb}, {s.AllNetworks, sbAllNetworks}, {s.Tracked, sbTracked}} {
		if f.on {
			value.Flags |= f.flag
		}
	}
	return value
}

// Sandbox reads a sandbox; false if the hooks are off in it.
func (d *Datapath) Sandbox(cookie uint64) (Sandbox, bool, error) {
	key := mstSandboxKey{Cookie: cookie}
	var v mstSandbox
	err := d.maps["sandboxes"].Lookup(&key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Sandbox{}, false, nil
	}
	if err != nil {
		return Sandbox{}, false, fmt.Errorf("read the sandbox %d: %w", cookie, err)
	}
	return Sandbox{
		Cookie: cookie, DNSPort: be(v.DnsPort), SocketLB: v.Flags&sbSocketLb != 0,
		AllNetworks: v.Flags&sbAllNetworks != 0, Tracked: v.Flags&sbTracked != 0,
	}, true, nil
}

// Sandboxes lists the cookies of the sandboxes known, with the networks each is a member of.
func (d *Datapath) Sandboxes() (map[uint64][]uint32, error) {
	out := map[uint64][]uint32{}
	var key mstSandboxKey
	var v mstSandbox
	entries := d.maps["sandboxes"].Iterate()
	for entries.Next(&key, &v) {
		if _, ok := out[key.Cookie]; !ok {
			out[key.Cookie] = nil
		}
		if key.Network != 0 {
			out[key.Cookie] = append(out[key.Cookie], key.Network)
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_sandboxes: %w", err)
	}
	return out, nil
}

// PutMember lets a sandbox reach the VIPs of a network.
func (d *Datapath) PutMember(cookie uint64, network uint32) error {
	key := mstSandboxKey{Cookie: cookie, Network: network}
	if err := d.maps["sandboxes"].Put(&key, &mstSandbox{}); err != nil {
		return fmt.Errorf("make the sandbox %d a member of network %d: %w", cookie, network, full(err))
	}
	return nil
}

// DeleteMember undoes PutMember; DeleteMember(cookie, 0) undoes PutSandbox.
func (d *Datapath) DeleteMember(cookie uint64, network uint32) error {
	key := mstSandboxKey{Cookie: cookie, Network: network}
	if err := remove(d.maps["sandboxes"], &key); err != nil {
		return fmt.Errorf("take the sandbox %d out of network %d: %w", cookie, network, err)
	}
	if network != 0 {
		return nil
	}
	return d.deleteListeners(cookie)
}

// deleteListeners forgets the listeners of a sandbox that is gone.
func (d *Datapath) deleteListeners(cookie uint64) error {
	err := removeWhere(d.maps["listeners"], func(key mstListenerKey, _ uint32) bool { return key.Cookie == cookie })
	if err != nil {
		return fmt.Errorf("remove the listeners of the sandbox %d: %w", cookie, err)
	}
	return nil
}

func isFull(err error) bool { return errors.Is(err, unix.E2BIG) }
