// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// family says how a socket names IPv4 or IPv6 addresses.
type family struct {
	name string
	af   int
	v6   bool // the addresses' family
}

var families = []family{
	{"IPv4", unix.AF_INET, false},
	{"IPv6", unix.AF_INET6, true},
	{"IPv4 on an IPv6 socket", unix.AF_INET6, false},
}

// seen is an address as a socket of the family shows it.
func (f family) seen(a netip.AddrPort) netip.AddrPort {
	if f.af == unix.AF_INET6 {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	return a
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func TestSocketHooks(t *testing.T) {
	sb := newSandbox(t)
	for _, v6 := range []bool{false, true} { // the helper's own addresses, as a backend and as another
		a := addressesOf(v6)
		addLocal(t, a.client, a.backend)
	}
	const stream, datagram = unix.SOCK_STREAM, unix.SOCK_DGRAM

	for _, c := range []struct {
		name string
		run  func(s *sandbox, f family, w *world)
	}{
		{"connect to a VIP reaches the backend, and getpeername shows the VIP", func(s *sandbox, f family, w *world) {
			server, addr := s.server(f.af, stream, port(w.backend, 0))
			w.service(w.vip, 80, ProtocolTCP, w.backendAt(w.backend, addr.Port()))
			k := s.socket(f.af, stream)
			k.ok("connect", port(w.vip, 80))
			require.Equal(s, f.seen(port(w.vip, 80)), k.ok("getpeername").Addr)
			accepted := server.ok("accept")
			require.Equal(s, f.seen(k.ok("getsockname").Addr), accepted.Addr)
			s.do(call{Op: "close", FD: accepted.FD})
		}},
		{"a connected datagram socket talks to the VIP only", func(s *sandbox, f family, w *world) {
			server, addr := s.server(f.af, datagram, port(w.backend, 0))
			w.service(w.vip, 53, ProtocolUDP, w.backendAt(w.backend, addr.Port()))
			k := s.socket(f.af, datagram)
			k.ok("connect", port(w.vip, 53))
			require.Equal(s, f.seen(port(w.vip, 53)), k.ok("getpeername").Addr)
			k.ok("send")
			server.ok("echo")
			got := k.ok("recvfrom")
			require.Equal(s, outcome{Addr: f.seen(port(w.vip, 53)), Data: "hello"}, got)
		}},
		{"an unconnected datagram socket hears the VIP, several of them too", func(s *sandbox, f family, w *world) {
			k := s.socket(f.af, datagram)
			for i, vip := range []netip.Addr{w.vip, w.vip2, w.vip} {
				server, addr := s.server(f.af, datagram, port(w.backend, 0))
				w.service(vip, uint16(53+i), ProtocolUDP, w.backendAt(w.backend, addr.Port()))
				k.ok("sendto", port(vip, uint16(53+i)))
				server.ok("echo")
				require.Equal(s, f.seen(port(vip, uint16(53+i))), k.ok("recvfrom").Addr)
			}
		}},
		{"a datagram socket that connects anew shows the VIP it asked for last", func(s *sandbox, f family, w *world) {
			id := w.backendAt(w.backend, 5353)
			w.service(w.vip, 53, ProtocolUDP, id)
			w.service(w.vip2, 53, ProtocolUDP, id)
			k := s.socket(f.af, datagram)
			for _, vip := range []netip.Addr{w.vip, w.vip2, w.vip} {
				k.ok("connect", port(vip, 53))
				require.Equal(s, f.seen(port(vip, 53)), k.ok("getpeername").Addr)
			}
		}},
		{"an unconnected datagram socket keeps its backend until that is gone", func(s *sandbox, f family, w *world) {
			one, oneAddr := s.server(f.af, datagram, port(w.backend, 0))
			two, twoAddr := s.server(f.af, datagram, port(w.backend, 0))
			first, second := w.backendAt(w.backend, oneAddr.Port()), w.backendAt(w.backend, twoAddr.Port())
			service := w.service(w.vip, 53, ProtocolUDP, first)
			k := s.socket(f.af, datagram)
			k.ok("sendto", port(w.vip, 53))
			one.ok("echo")
			service.Slots = []uint32{second}
			w.putService(service)
			k.ok("sendto", port(w.vip, 53))
			one.ok("echo")
			require.NoError(s, testDP.DeleteBackend(first))
			k.ok("sendto", port(w.vip, 53))
			two.ok("echo")
			for range 3 {
				require.Equal(s, f.seen(port(w.vip, 53)), k.ok("recvfrom").Addr)
			}
		}},
		{"a service without backend refuses the connection", func(s *sandbox, f family, w *world) {
			w.service(w.vip, 80, ProtocolAny)
			s.socket(f.af, stream).fails(unix.ECONNREFUSED, "connect", port(w.vip, 80))
			s.socket(f.af, datagram).fails(unix.ECONNREFUSED, "connect", port(w.vip, 80))
			s.socket(f.af, datagram).fails(unix.ECONNREFUSED, "sendto", port(w.vip, 80))
			require.Equal(s, map[string]uint64{"no-backend socket": 3}, w.drops())
		}},
		{"a port that no service has refuses it too", func(s *sandbox, f family, w *world) {
			w.web()
			s.socket(f.af, stream).fails(unix.ECONNREFUSED, "connect", port(w.vip, 81))
			s.socket(f.af, datagram).fails(unix.ECONNREFUSED, "sendto", port(w.vip, 80))
			require.Equal(s, map[string]uint64{"no-service socket": 2}, w.drops())
		}},
		{"a VIP of a network the sandbox is not in is unreachable", func(s *sandbox, f family, w *world) {
			w.putService(Service{Frontend: Frontend{Addr: w.foreignVIP}, ID: 9, Network: network2, Slots: []uint32{w.backendAt(w.backend, 0)}})
			s.socket(f.af, stream).fails(unix.EHOSTUNREACH, "connect", port(w.foreignVIP, 80))
			s.socket(f.af, datagram).fails(unix.EHOSTUNREACH, "sendto", port(w.foreignVIP, 80))
			require.Equal(s, map[string]uint64{"not-member socket": 2}, w.drops())
			require.NoError(s, testDP.PutMember(s.cookie, network2))
			s.socket(f.af, datagram).ok("connect", port(w.foreignVIP, 80))
		}},
		{"an address of the pool without a service is unreachable", func(s *sandbox, f family, w *world) {
			s.socket(f.af, stream).fails(unix.EHOSTUNREACH, "connect", port(w.poolOnly, 80))
			s.socket(f.af, datagram).fails(unix.EHOSTUNREACH, "sendto", port(w.poolOnly, 80))
			require.Equal(s, map[string]uint64{"no-service socket": 2}, w.drops())
		}},
		{"an address that is none of ours is left alone", func(s *sandbox, f family, w *world) {
			_, addr := s.server(f.af, stream, port(w.backend, 0))
			k := s.socket(f.af, stream)
			k.ok("connect", port(w.backend, addr.Port()))
			require.Equal(s, f.seen(port(w.backend, addr.Port())), k.ok("getpeername").Addr)
		}},
		{"bind to a VIP that the sandbox backs means its own address", func(s *sandbox, f family, w *world) {
			require.NoError(s, testDP.PutBackend(Backend{ID: 5, Addr: w.backend, NetnsCookie: s.cookie}))
			w.service(w.vip, 0, ProtocolAny, w.backendAt(w.backend2, 0), 5)
			for i, typ := range []int{stream, datagram} {
				k := s.socket(f.af, typ)
				k.ok("bind", port(w.vip, uint16(7000+i)))
				require.Equal(s, f.seen(port(w.backend, uint16(7000+i))), k.ok("getsockname").Addr)
			}
		}},
		{"bind to a VIP that the sandbox does not back fails as it would without us", func(s *sandbox, f family, w *world) {
			w.service(w.vip, 0, ProtocolAny, w.backendAt(w.backend2, 0))
			s.socket(f.af, stream).fails(unix.EADDRNOTAVAIL, "bind", port(w.vip, 7000))
		}},
		{"a member that connects to its own VIP reaches itself", func(s *sandbox, f family, w *world) {
			_, addr := s.server(f.af, stream, port(w.backend, 0))
			require.NoError(s, testDP.PutBackend(Backend{ID: 5, Addr: w.backend, Port: addr.Port(), NetnsCookie: s.cookie}))
			w.service(w.vip, 80, ProtocolTCP, 5)
			k := s.socket(f.af, stream)
			k.ok("connect", port(w.vip, 80))
			require.Equal(s, f.seen(port(w.vip, 80)), k.ok("getpeername").Addr)
		}},
		{"listeners are counted up and down, on one port by several sockets too", func(s *sandbox, f family, w *world) {
			require.Empty(s, s.listeners())
			one, addr := s.server(f.af, stream, port(w.backend, 0))
			require.Equal(s, map[uint16]uint32{addr.Port(): 1}, s.listeners())
			two, _ := s.server(f.af, stream, addr)
			require.Equal(s, map[uint16]uint32{addr.Port(): 2}, s.listeners())
			one.ok("listen") // again: only the backlog changes
			require.Equal(s, map[uint16]uint32{addr.Port(): 2}, s.listeners())
			k := s.socket(f.af, stream)
			k.ok("connect", addr)
			one.ok("close")
			require.Equal(s, map[uint16]uint32{addr.Port(): 1}, s.listeners())
			two.ok("close")
			require.Empty(s, s.listeners())
		}},
		{"accepted connections that close are no listeners", func(s *sandbox, f family, w *world) {
			server, addr := s.server(f.af, stream, port(w.backend, 0))
			k := s.socket(f.af, stream)
			k.ok("connect", addr)
			accepted := server.ok("accept")
			s.do(call{Op: "close", FD: accepted.FD})
			require.Equal(s, map[uint16]uint32{addr.Port(): 1}, s.listeners())
		}},
		{"a new connection passes over a backend that stopped to listen", func(s *sandbox, f family, w *world) {
			gone, goneAddr := s.server(f.af, stream, port(w.backend, 0))
			_, addr := s.server(f.af, stream, port(w.backend, 0))
			require.NoError(s, testDP.PutBackend(Backend{ID: 5, Addr: w.backend, Port: goneAddr.Port(), NetnsCookie: s.cookie}))
			require.NoError(s, testDP.PutBackend(Backend{ID: 6, Addr: w.backend, Port: addr.Port(), NetnsCookie: s.cookie}))
			w.service(w.vip, 80, ProtocolTCP, 5, 5, 5, 6)
			gone.ok("close")
			for range 8 {
				s.socket(f.af, stream).ok("connect", port(w.vip, 80))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) {
					s := sb.begin(t, f.v6)
					c.run(s, f, s.world)
				})
			}
		})
	}

	t.Run("a listener on loopback is nobody's backend", func(t *testing.T) {
		s := sb.begin(t, false)
		s.server(unix.AF_INET, stream, netip.MustParseAddrPort("127.0.0.1:0"))
		s.server(unix.AF_INET6, stream, netip.MustParseAddrPort("[::1]:0"))
		require.Empty(t, s.listeners())
		s.server(unix.AF_INET6, stream, netip.MustParseAddrPort("[::]:7001"))
		require.Equal(t, map[uint16]uint32{7001: 1}, s.listeners())
	})
	t.Run("a sandbox that is not ours, or does it per packet, is left alone", func(t *testing.T) {
		s := sb.begin(t, false, func(b *Sandbox) { b.SocketLB = false })
		s.world.web()
		k := s.socket(unix.AF_INET, datagram)
		k.ok("connect", port(s.world.vip, 80))
		require.Equal(t, port(s.world.vip, 80), k.ok("getpeername").Addr)
		require.NoError(t, testDP.DeleteMember(s.cookie, 0))
		s.socket(unix.AF_INET, datagram).ok("connect", port(s.world.poolOnly, 80))
		s.server(unix.AF_INET, stream, port(s.world.backend, 0))
		require.Empty(t, s.listeners())
		require.Empty(t, s.world.drops())
	})
	t.Run("the host is a member of every network", func(t *testing.T) {
		s := sb.begin(t, false, func(b *Sandbox) { b.AllNetworks = true })
		w := s.world
		w.putService(Service{Frontend: Frontend{Addr: w.foreignVIP}, ID: 9, Network: network2, Slots: []uint32{w.backendAt(w.backend, 0)}})
		s.socket(unix.AF_INET, datagram).ok("connect", port(w.foreignVIP, 80))
	})
	t.Run("a sandbox keeps its backend with affinity", func(t *testing.T) {
		s := sb.begin(t, false)
		w := s.world
		one, addr := s.server(unix.AF_INET, datagram, port(w.backend, 0))
		two, addr2 := s.server(unix.AF_INET, datagram, port(w.backend, 0))
		service := w.service(w.vip, 53, ProtocolUDP, w.backendAt(w.backend, addr.Port()), w.backendAt(w.backend, addr2.Port()))
		service.Affinity = 60
		w.putService(service)
		for range 12 {
			s.socket(unix.AF_INET, datagram).ok("sendto", port(w.vip, 53))
		}
		var key mstAffinityKey
		var a mstAffinity
		it := testDP.maps["affinity"].Iterate()
		require.True(t, it.Next(&key, &a))
		only := map[uint32]sock{1: one, 2: two}[a.Backend]
		for range 12 {
			only.ok("recvfrom")
		}
	})
}

func TestDNSHook(t *testing.T) {
	sb := newSandbox(t)
	engine := netip.MustParseAddrPort("127.0.0.11:53")
	start := func(t *testing.T, typ int) (s *sandbox, engines, ours sock) {
		s = sb.begin(t, false)
		engines, _ = s.server(unix.AF_INET, typ, engine)
		ours, addr := s.server(unix.AF_INET, typ, netip.AddrPortFrom(engine.Addr(), 0))
		require.NoError(t, testDP.PutSandbox(Sandbox{Cookie: s.cookie, DNSPort: addr.Port()}))
		return s, engines, ours
	}
	asks := func(s *sandbox, af int, who sock) {
		s.Helper()
		k := s.socket(af, unix.SOCK_DGRAM)
		f := family{af: af}
		k.ok("sendto", engine)
		who.ok("echo")
		require.Equal(s, f.seen(engine), k.ok("recvfrom").Addr, "it always looks like the engine's")
		k = s.socket(af, unix.SOCK_DGRAM)
		k.ok("connect", engine)
		require.Equal(s, f.seen(engine), k.ok("getpeername").Addr)
		k.ok("send")
		who.ok("echo")
		require.Equal(s, f.seen(engine), k.ok("recvfrom").Addr)
	}
	t.Run("our resolver is asked while it listens and the daemon's heart beats", func(t *testing.T) {
		s, _, ours := start(t, unix.SOCK_DGRAM)
		require.NoError(t, testDP.Beat())
		asks(s, unix.AF_INET, ours)
		asks(s, unix.AF_INET6, ours)
	})
	t.Run("over TCP too", func(t *testing.T) {
		s, engines, ours := start(t, unix.SOCK_STREAM)
		require.NoError(t, testDP.Beat())
		k := s.socket(unix.AF_INET, unix.SOCK_STREAM)
		k.ok("connect", engine)
		require.Equal(t, engine, k.ok("getpeername").Addr)
		s.do(call{Op: "close", FD: ours.ok("accept").FD})
		ours.ok("close")
		s.socket(unix.AF_INET, unix.SOCK_STREAM).ok("connect", engine)
		s.do(call{Op: "close", FD: engines.ok("accept").FD})
	})
	t.Run("the engine's is asked when the heartbeat is old", func(t *testing.T) {
		s, engines, _ := start(t, unix.SOCK_DGRAM)
		require.NoError(t, testDP.Beat())
		cfg, err := testDP.config()
		require.NoError(t, err)
		cfg.Heartbeat -= uint64(2100 * time.Millisecond)
		require.NoError(t, testDP.putConfig(cfg))
		asks(s, unix.AF_INET, engines)
	})
	t.Run("the engine's is asked when there never was a heartbeat, or no listener, or no port", func(t *testing.T) {
		s, engines, ours := start(t, unix.SOCK_DGRAM)
		asks(s, unix.AF_INET, engines)
		require.NoError(t, testDP.Beat())
		ours.ok("close")
		asks(s, unix.AF_INET, engines)
		require.NoError(t, testDP.PutSandbox(Sandbox{Cookie: s.cookie}))
		asks(s, unix.AF_INET, engines)
	})
	t.Run("other addresses and ports of the loopback are left alone", func(t *testing.T) {
		s, _, _ := start(t, unix.SOCK_DGRAM)
		require.NoError(t, testDP.Beat())
		for _, other := range []string{"127.0.0.11:54", "127.0.0.1:53"} {
			addr := netip.MustParseAddrPort(other)
			server, _ := s.server(unix.AF_INET, unix.SOCK_DGRAM, addr)
			k := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
			k.ok("sendto", addr)
			server.ok("echo")
			require.Equal(t, addr, k.ok("recvfrom").Addr)
		}
	})
	t.Run("a socket of our own is exempt", func(t *testing.T) {
		s, engines, ours := start(t, unix.SOCK_DGRAM)
		require.NoError(t, testDP.Beat())
		k := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
		pidfd, err := unix.PidfdOpen(s.pid, 0)
		require.NoError(t, err)
		defer unix.Close(pidfd)
		fd, err := unix.PidfdGetfd(pidfd, k.fd, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		require.NoError(t, testDP.Exempt(fd))
		k.ok("sendto", engine)
		engines.ok("echo")
		require.Equal(t, engine, k.ok("recvfrom").Addr)
		asks(s, unix.AF_INET, ours)
		require.ErrorIs(t, testDP.Exempt(-1), syscall.EBADF)
	})
}
