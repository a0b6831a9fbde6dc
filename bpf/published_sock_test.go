// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPublishedToSockets: the helper is the host, and has the backend's address as well.
func TestPublishedToSockets(t *testing.T) {
	sb := newSandbox(t)
	for _, v6 := range []bool{false, true} {
		addLocal(t, addressesOf(v6).backend)
	}
	asHost := func(b *Sandbox) { b.AllNetworks = true }
	for _, v6 := range []bool{false, true} {
		name, af, loop, everywhere := "IPv4", unix.AF_INET, netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified()
		if v6 {
			name, af, loop, everywhere = "IPv6", unix.AF_INET6, netip.IPv6Loopback(), netip.IPv6Unspecified()
		}
		begin := func(t *testing.T, at netip.Addr, options ...func(*Sandbox)) (s *sandbox, server sock) {
			s = sb.begin(t, v6, options...)
			s.world.leaves(true)
			server, addr := s.server(af, unix.SOCK_STREAM, port(s.world.backend, 0))
			service := s.world.publish(at, 80, ProtocolTCP)
			require.NoError(t, testDP.PutBackend(Backend{ID: service.Slots[0], Addr: s.world.backend, Port: addr.Port()}))
			return s, server
		}
		t.Run(name, func(t *testing.T) {
			t.Run("the host reaches a port of all addresses by any of its own", func(t *testing.T) {
				s, server := begin(t, everywhere, asHost)
				for _, a := range []netip.Addr{loop, s.world.host} {
					k := s.socket(af, unix.SOCK_STREAM)
					k.ok("connect", port(a, 80))
					require.Equal(t, port(a, 80), k.ok("getpeername").Addr)
					s.do(call{Op: "close", FD: server.ok("accept").FD})
				}
			})
			t.Run("a port of one address is not reached by another", func(t *testing.T) {
				s, _ := begin(t, loop, asHost)
				s.socket(af, unix.SOCK_STREAM).ok("connect", port(loop, 80))
				s, _ = begin(t, s.world.host, asHost)
				s.socket(af, unix.SOCK_STREAM).fails(syscall.ECONNREFUSED, "connect", port(loop, 80))
			})
			t.Run("a container reaches the host's, and not the loopback's of the host", func(t *testing.T) {
				s, _ := begin(t, everywhere)
				s.socket(af, unix.SOCK_STREAM).ok("connect", port(s.world.host, 80))
				s.socket(af, unix.SOCK_STREAM).fails(syscall.ECONNREFUSED, "connect", port(loop, 80))
			})
			t.Run("a container that cannot send to the backend leaves it to the host's end", func(t *testing.T) {
				s, _ := begin(t, everywhere)
				s.world.movesOut()
				k := s.socket(af, unix.SOCK_STREAM)
				k.fails(syscall.ECONNREFUSED, "connect", port(s.world.host, 80)) // here the host itself: nobody listens
				require.Empty(t, s.world.drops())
				require.NoError(t, testDP.PutMember(s.cookie, network2))
				s.socket(af, unix.SOCK_STREAM).ok("connect", port(s.world.host, 80))
			})
			t.Run("so does one whose network leads nowhere out, where it is dropped", func(t *testing.T) {
				s, _ := begin(t, everywhere)
				s.world.movesTo(network1) // without egress
				s.socket(af, unix.SOCK_STREAM).fails(syscall.ECONNREFUSED, "connect", port(s.world.host, 80))
				require.Empty(t, s.world.drops())
			})
			t.Run("a restricted port is the host's, and left to the host's end by a container", func(t *testing.T) {
				restrict := func(w *world) {
					services, err := testDP.Services()
					require.NoError(t, err)
					services[0].Sources = []netip.Prefix{}
					require.NoError(t, testDP.PutService(services[0]))
				}
				s, _ := begin(t, everywhere, asHost)
				restrict(s.world)
				s.socket(af, unix.SOCK_STREAM).ok("connect", port(s.world.host, 80))
				s.socket(af, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(everywhere, 80))
				s, _ = begin(t, everywhere)
				restrict(s.world)
				s.socket(af, unix.SOCK_STREAM).fails(syscall.ECONNREFUSED, "connect", port(s.world.host, 80))
			})
			t.Run("a datagram is, too", func(t *testing.T) {
				s, _ := begin(t, everywhere)
				server, addr := s.server(af, unix.SOCK_DGRAM, port(s.world.backend, 0))
				service := s.world.publish(everywhere, 53, ProtocolUDP)
				require.NoError(t, testDP.PutBackend(Backend{ID: service.Slots[0], Addr: s.world.backend, Port: addr.Port()}))
				k := s.socket(af, unix.SOCK_DGRAM)
				k.ok("sendto", port(s.world.host, 53))
				server.ok("echo")
				require.Equal(t, port(s.world.host, 53), k.ok("recvfrom").Addr)
				s.world.movesOut()
				require.NoError(t, testDP.DeleteBackend(service.Slots[0])) // what the socket remembers is over
				service.Slots = []uint32{s.world.backendAt(s.world.backend, addr.Port())}
				require.NoError(t, testDP.PutService(service))
				itself, _ := s.server(af, unix.SOCK_DGRAM, port(s.world.host, 53))
				k.ok("sendto", port(s.world.host, 53))
				itself.ok("echo")
			})
			t.Run("a socket bound to loopback cannot go further", func(t *testing.T) {
				s, _ := begin(t, everywhere, asHost)
				k := s.socket(af, unix.SOCK_STREAM)
				k.ok("bind", port(loop, 0))
				k.fails(syscall.ECONNREFUSED, "connect", port(loop, 80))
			})
			t.Run("nobody on the host takes the port", func(t *testing.T) {
				s, _ := begin(t, everywhere, asHost)
				s.socket(af, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(everywhere, 80))
				s.socket(af, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(loop, 80))
				s.socket(af, unix.SOCK_DGRAM).ok("bind", port(everywhere, 80))
				s.socket(af, unix.SOCK_STREAM).ok("bind", port(everywhere, 81))
			})
			t.Run("nor at [::], which is IPv4 as well", func(t *testing.T) {
				s, _ := begin(t, everywhere, asHost)
				s.socket(unix.AF_INET6, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(netip.IPv6Unspecified(), 80))
				if v6 {
					s.socket(unix.AF_INET, unix.SOCK_STREAM).ok("bind", port(netip.IPv4Unspecified(), 80))
				}
			})
			t.Run("nor at all addresses where it is one's, but at another", func(t *testing.T) {
				s, _ := begin(t, addressesOf(v6).host, asHost)
				s.socket(af, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(everywhere, 80))
				s.socket(unix.AF_INET6, unix.SOCK_STREAM).fails(syscall.EADDRINUSE, "bind", port(netip.IPv6Unspecified(), 80))
				s.socket(af, unix.SOCK_STREAM).ok("bind", port(loop, 80))
				s.socket(af, unix.SOCK_STREAM).ok("bind", port(everywhere, 81))
				s.socket(af, unix.SOCK_DGRAM).ok("bind", port(everywhere, 80))
				if v6 {
					s.socket(unix.AF_INET, unix.SOCK_STREAM).ok("bind", port(netip.IPv4Unspecified(), 80))
				}
			})
			t.Run("a container may bind to what the host has published", func(t *testing.T) {
				s, _ := begin(t, everywhere)
				s.socket(af, unix.SOCK_STREAM).ok("bind", port(everywhere, 80))
			})
		})
	}
}
