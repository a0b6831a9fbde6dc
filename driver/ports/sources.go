// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// Restrict lets only some sources be passed on from a port that is held, or will be; nil lets everybody. The host
// itself always is.
func (h *Holder) Restrict(p Port, sources []netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if sources == nil {
		delete(h.sources, keyOf(p.Addr, p.udp()))
		return
	}
	h.sources[keyOf(p.Addr, p.udp())] = sources
}

// admits tells whether a client may be passed on. It is called with the lock held.
func (h *Holder) admits(s *socket, client netip.Addr) bool {
	k := s.key
	if s.both {
		k.addr = netip.IPv6Unspecified().As16()
		if family(client) == 0 {
			k.addr = netip.IPv4Unspecified().As16()
		}
	}
	sources, restricted := h.sources[k]
	client = client.Unmap().WithZone("")
	return !restricted || client.IsLoopback() ||
		slices.ContainsFunc(sources, func(p netip.Prefix) bool { return p.Contains(client) }) || h.isHost(client)
}

// hostAge is how long the host's addresses are known for: anybody may ask, and listing them costs more than he does.
const hostAge = time.Second

// isHost tells whether an address is one of the host's own. It is called with the lock held.
func (h *Holder) isHost(a netip.Addr) bool {
	if now := time.Now(); now.Sub(h.hostAt) > hostAge {
		h.hostAt, h.host = now, map[netip.Addr]bool{}
		addrs, _ := net.InterfaceAddrs()
		for _, own := range addrs {
			if p, err := netip.ParsePrefix(own.String()); err == nil {
				h.host[p.Addr().WithZone("")] = true
			}
		}
	}
	return h.host[a]
}
