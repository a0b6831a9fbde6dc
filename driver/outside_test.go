// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/driver/ports"
)

// What is outside of the host, and what of the host's is seen from there, in miniature.

// Uplinks are foreign devices with addresses that the host sends from.
func (k *kernel) Uplinks([]string) ([]link.Uplink, []string, error) {
	if err := k.fault.hit("uplinks"); err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []link.Uplink
	for name, d := range k.devices {
		if d.sends.IsValid() {
			out = append(out, link.Uplink{Device: link.Device{Name: name, Index: d.index}, Addrs: []netip.Addr{d.sends}})
		}
	}
	return out, nil, nil
}

func (k *kernel) HostAddrs() ([]netip.Addr, error) {
	if err := k.fault.hit("host addresses"); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []netip.Addr
	for _, d := range k.devices {
		if d.sends.IsValid() {
			out = append(out, d.sends)
		}
		out = append(out, d.gateways...)
	}
	return out, nil
}

func (k *kernel) Route(name string) error {
	if err := k.fault.hit("route"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return link.ErrNoDevice
	}
	d.forwards = true
	return nil
}

// addUplink adds a device that leads out.
func (k *kernel) addUplink(name, addr string) {
	d := k.addForeign(name)
	k.mu.Lock()
	defer k.mu.Unlock()
	d.sends = netip.MustParseAddr(addr)
}

func (d *datapath) DeleteHostAddr(a netip.Addr) error { return d.DeleteEndpoint(a) }

func (d *datapath) PutUplink(u bpf.Uplink) error {
	if err := d.fault.hit("put uplink"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.uplinks[u.IfIndex] = u
	return nil
}

func (d *datapath) DeleteUplink(index int) error {
	if err := d.fault.hit("delete uplink"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.uplinks, index)
	return nil
}

func (d *datapath) Uplinks() ([]bpf.Uplink, error) {
	if err := d.fault.hit("known uplinks"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.uplinks)), nil
}

// holder is a daemon's sockets; they end with it.
type holder struct {
	fault   *fault
	taken   map[ports.Port]string // by processes of the host
	mu      sync.Mutex
	held    map[ports.Port]netip.AddrPort
	sources map[ports.Port][]netip.Prefix
	both    int // calls that held both families
}

func (h *holder) Hold(p ports.Port, via netip.AddrPort) error {
	if err := h.fault.hit("hold"); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if by := h.taken[p]; by != "" {
		return fmt.Errorf("port %s is %w by %s", p, ports.ErrInUse, by)
	}
	h.held[p] = via
	return nil
}

func (h *holder) HoldEvery(protocol string, number uint16, via4, via6 netip.AddrPort) error {
	p4 := ports.Port{Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), number), Protocol: protocol}
	err := h.Hold(p4, via4)
	if err == nil {
		err = h.Hold(ports.Port{Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), number), Protocol: protocol}, via6)
	}
	if err != nil {
		h.Release(p4)
		return err
	}
	h.both++
	return nil
}

func (h *holder) Restrict(p ports.Port, sources []netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sources[p] = sources
}

func (h *holder) Release(p ports.Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, p)
}

func (h *holder) Free(protocol string, addrs []netip.Addr) (uint16, error) {
	if err := h.fault.hit("free"); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for port := uint16(32768); ; port++ {
		if !slices.ContainsFunc(addrs, func(a netip.Addr) bool {
			p := ports.Port{Addr: netip.AddrPortFrom(a, port), Protocol: protocol}
			return h.held[p].IsValid() || h.taken[p] != ""
		}) {
			return port, nil
		}
	}
}

var (
	_ Ports = (*holder)(nil)
	_ Ports = (*ports.Holder)(nil)
)
