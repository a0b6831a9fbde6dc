// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// opens begins a stream of the client's to port 443 outside and returns the port that it has there; closes ends it.
func (w *world) opens(sport uint16) uint16 {
	w.Helper()
	p := w.leavesAs(tcp(w.client, sport, w.outside, 443, syn), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
	w.answers(sport, p, synAck)
	w.leavesAs(tcp(w.client, sport, w.outside, 443, ack), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, ack) })
	w.answers(sport, p, ack)
	return p
}

func (w *world) closes(sport, p uint16) {
	w.Helper()
	w.leavesAs(tcp(w.client, sport, w.outside, 443, fin), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, fin) })
	w.answers(sport, p, fin)
}

func (w *world) leavesAs(in frame, out func(uint16) frame) uint16 {
	w.Helper()
	return w.send(fromClient(), in).leftAs(out)
}

func (w *world) answers(sport, p uint16, s segment) {
	w.Helper()
	w.send(fromOutside(), tcp(w.outside, 443, w.host, p, s)).toClient(tcp(w.outside, 443, w.client, sport, s))
}

// collects ages every masqueraded flow by so many seconds, collects, and says how many are left.
func (w *world) collects(seconds uint64, left int) {
	w.Helper()
	w.agePart(func(*mstTuple) bool { return true }, seconds*1e9)
	require.NoError(w, testDP.CollectFlows())
	require.Len(w, entries(w.TB, "snat"), 2*left)
}

func (w *world) quota(ifindex int) (n uint32) {
	w.Helper()
	_ = testDP.maps["quotas"].Lookup(uint32(ifindex), &n) // missing is none
	return n
}

func TestMasqueradedFlowsEnd(t *testing.T) {
	both(t, []scenario{
		{"a stream that was not answered, after two minutes", func(w *world) {
			w.leaves(true)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn))
			w.collects(119, 1)
			w.collects(2, 0)
			require.Zero(w, w.quota(clientIf))
		}},
		{"an established one, after two hours of silence on both sides", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			w.collects(7400, 1)
			w.answers(5000, p, data)
			w.collects(7400, 1)
			w.collects(50, 0)
			w.send(fromOutside(), tcp(w.outside, 443, w.host, p, data)).untouched()
		}},
		{"a closed one, two minutes later", func(w *world) {
			w.leaves(true)
			w.closes(5000, w.opens(5000))
			w.collects(119, 1)
			w.collects(2, 0)
		}},
		{"one that was reset, two minutes later", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			w.answers(5000, p, rst)
			w.collects(121, 0)
		}},
		{"datagrams after five minutes, pings after one", func(w *world) {
			w.leaves(true)
			w.send(fromClient(), udp(w.client, 5000, w.outside, 53, "q"))
			w.send(fromClient(), echoOf(w.client, w.outside, 77, false))
			w.collects(59, 2)
			w.collects(2, 1)
			w.collects(238, 1)
			w.collects(2, 0)
		}},
		{"a closed tuple that is used again keeps its port and lives as long as any", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			w.closes(5000, p)
			require.Equal(w, p, w.opens(5000))
			w.collects(7400, 1)
			w.answers(5000, p, data)
		}},
		{"with their endpoint, and are not the next one's who gets its address", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			q := w.send(fromBackend(), udp(w.backend, 5000, w.outside, 53, "q")).sourcePort()
			require.NoError(w, testDP.DeleteEndpoint(w.client))
			require.NoError(w, testDP.PutEndpoint(Endpoint{
				Addr: w.client, IfIndex: clientIf, Network: network1, Redirect: true, MAC: clientMAC, HostMAC: clientHostMAC,
			}))
			w.send(fromOutside(), tcp(w.outside, 443, w.host, p, data)).untouched()
			w.send(fromOutside(), udp(w.outside, 53, w.host, q, "a")).toBackend(udp(w.outside, 53, w.backend, 5000, "a"))
		}},
		{"when the uplink's address is another", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			four, six := addressesOf(false), addressesOf(true)
			other := w.stranger()
			u := Uplink{IfIndex: uplinkIf, SNAT4: four.host, SNAT6: six.host}
			if w.v6 {
				u.SNAT6 = other
			} else {
				u.SNAT4 = other
			}
			require.NoError(w, testDP.PutUplink(u))
			q := w.leavesAs(tcp(w.client, 5000, w.outside, 443, data), func(p uint16) frame { return tcp(other, p, w.outside, 443, data) })
			w.send(fromOutside(), tcp(w.outside, 443, other, q, rst)).toClient(tcp(w.outside, 443, w.client, 5000, rst))
			w.answers(5000, p, data) // what was under way to the old one may still come
			w.agePart(func(k *mstTuple) bool { return k.Dport == be(p) }, 7500e9)
			require.NoError(w, testDP.CollectFlows())
			require.Len(w, entries(w.TB, "snat"), 2)
			require.Equal(w, uint32(1), w.quota(clientIf))
			require.NoError(w, testDP.PutUplink(Uplink{IfIndex: uplinkIf}))
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, data)).dropped("no-route")
		}},
	})
}

// taken claims every source port towards a server but the free ones, of the range that masqueraded flows have.
func (w *world) taken(server netip.Addr, port uint16, proto uint8, free ...uint16) {
	w.Helper()
	var keys []mstTuple
	for p := 61000; p <= 65535; p++ {
		if !slices.Contains(free, uint16(p)) {
			keys = append(keys, mstTuple{
				Saddr: addrOf(server), Daddr: addrOf(w.host), Sport: be(port), Dport: be(uint16(p)), Proto: proto, Dir: dirReply,
			})
		}
	}
	_, err := testDP.maps["snat"].BatchUpdate(keys, make([]mstCt, len(keys)), nil)
	require.NoError(w, err)
}

func TestMasqueradingWithoutRoom(t *testing.T) {
	both(t, []scenario{
		{"no port towards a server: that is counted, and no harm to flows there are and to others", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			w.taken(w.outside, 443, protoTCP, p)
			for sport := range uint16(3) {
				w.send(fromClient(), tcp(w.client, 5001+sport, w.outside, 443, syn)).dropped("snat-ports")
			}
			require.Equal(w, uint32(1), w.quota(clientIf), "what did not come about is no flow")
			w.leavesAs(tcp(w.client, 5000, w.outside, 443, data), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, data) })
			w.answers(5000, p, data)
			w.leavesAs(tcp(w.client, 5001, w.outside, 444, syn), func(p uint16) frame { return tcp(w.host, p, w.outside, 444, syn) })
			w.leavesAs(tcp(w.client, 5001, w.stranger(), 443, syn), func(p uint16) frame { return tcp(w.host, p, w.stranger(), 443, syn) })
			w.leavesAs(udp(w.client, 5001, w.outside, 443, "q"), func(p uint16) frame { return udp(w.host, p, w.outside, 443, "q") })
		}},
		{"an endpoint at its quota keeps its flows, and has new ones when some are over", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			require.NoError(w, testDP.maps["quotas"].Put(uint32(clientIf), uint32(16384)))
			w.send(fromClient(), tcp(w.client, 5001, w.outside, 443, syn)).dropped("snat-quota")
			w.leavesAs(tcp(w.client, 5000, w.outside, 443, data), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, data) })
			w.answers(5000, p, data)
			w.send(fromBackend(), udp(w.backend, 5000, w.outside, 53, "q"))
			require.NoError(w, testDP.CollectFlows())
			require.Equal(w, []uint32{1, 1}, []uint32{w.quota(clientIf), w.quota(backendIf)})
			w.leavesAs(tcp(w.client, 5001, w.outside, 443, syn), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
		}},
		{"the host's own sockets keep their tuples", func(w *world) {
			w.leaves(true)
			w.routerStays()
			var held []uint16 // of each try for a port some fall on these, and all others are taken
			for p := range uint16(300) {
				held = append(held, 62000+p)
			}
			var sockets []int
			for typ, proto := range map[int]uint8{unix.SOCK_STREAM: protoTCP, unix.SOCK_DGRAM: protoUDP} {
				for _, p := range held {
					sockets = append(sockets, w.connects(typ, p, netip.AddrPortFrom(w.outside, 443)))
				}
				w.taken(w.outside, 443, proto, held...)
			}
			for sport := range uint16(10) {
				w.send(fromClient(), tcp(w.client, 5000+sport, w.outside, 443, syn)).dropped("snat-ports")
				w.send(fromClient(), udp(w.client, 5000+sport, w.outside, 443, "q")).dropped("snat-ports")
			}
			w.send(fromOutside(), tcp(w.outside, 443, w.host, 62000, synAck)).untouched()
			for _, fd := range sockets {
				require.NoError(w, unix.Close(fd))
			}
			var left []uint16
			for sport := range uint16(30) {
				if r := w.send(fromClient(), udp(w.client, 5000+sport, w.outside, 443, "q")); r.verdict == verdictRedirect {
					left = append(left, r.sourcePort())
				}
			}
			require.NotEmpty(w, left)
			require.Subset(w, held, left)
		}},
		{"the host and a container use one port to one server", func(w *world) {
			w.leaves(true)
			w.routerStays()
			fd := w.connects(unix.SOCK_STREAM, 5000, netip.AddrPortFrom(w.outside, 443))
			defer unix.Close(fd)
			p := w.opens(5000)
			require.NotEqual(w, uint16(5000), p)
			w.send(fromOutside(), tcp(w.outside, 443, w.host, 5000, synAck)).untouched()
			w.answers(5000, p, data)
		}},
	})
	t.Run("a full map is counted, half a flow is not left, and flows there are go on", func(t *testing.T) {
		w := newWorld(t, false)
		w.leaves(true)
		p := w.opens(5000)
		m := testDP.maps["snat"]
		keys := make([]mstTuple, m.MaxEntries()-3) // room for one more
		for i := range keys {
			keys[i].Saddr.W[0], keys[i].Proto = uint32(i)+1, protoUDP
		}
		_, err := m.BatchUpdate(keys, make([]mstCt, len(keys)), nil)
		require.NoError(t, err)
		t.Cleanup(func() { _, err := m.BatchDelete(keys, nil); require.NoError(t, err) })
		before := w.quota(clientIf)
		w.send(fromClient(), udp(w.client, 5001, w.outside, 53, "q")).dropped("snat-full")
		require.Equal(t, before, w.quota(clientIf))
		require.NoError(t, m.Put(&mstTuple{}, &mstCt{}), "the room is still there")
		w.send(fromClient(), udp(w.client, 5001, w.outside, 53, "q")).dropped("snat-full")
		w.leavesAs(tcp(w.client, 5000, w.outside, 443, data), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, data) })
		w.answers(5000, p, data)
	})
}

// Nobody collects here: the daemon may be away.
func TestMasqueradingReusesPorts(t *testing.T) {
	const streams = 200
	// streams of the client's, all other ports being taken
	crowded := func(w *world) (many []uint16) {
		w.leaves(true)
		for sport := range uint16(streams) {
			many = append(many, w.opens(6000+sport))
		}
		w.taken(w.outside, 443, protoTCP, many...)
		return many
	}
	// silent has had no packet either way for so many seconds
	silent := func(w *world, seconds uint64) {
		now, err := monotonic()
		require.NoError(w, err)
		w.changeFlows(func(*mstTuple) bool { return true }, func(v *mstCt) { v.Seen = now - seconds*1e9 })
	}
	// another is the port of a new stream; each try for it hits one of the many with 76 %
	another := func(w *world) (sport, p uint16) {
		for sport = 5001; sport < 5101; sport++ {
			if r := w.send(fromClient(), tcp(w.client, sport, w.outside, 443, syn)); r.verdict == verdictRedirect {
				return sport, r.sourcePort()
			}
		}
		w.Fatal("no port was taken from a flow that is over")
		return 0, 0
	}
	both(t, []scenario{
		{"of streams that are over, after ten seconds", func(w *world) {
			many := crowded(w)
			silent(w, 7300)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).dropped("snat-ports")
			for i, p := range many {
				w.closes(6000+uint16(i), p)
			}
			silent(w, 5)
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).dropped("snat-ports")
			silent(w, 11)
			sport, p := another(w)
			require.Contains(w, many, p)
			require.Equal(w, uint32(streams), w.quota(clientIf))
			w.answers(sport, p, synAck)
			require.NoError(w, testDP.CollectFlows())
			require.Equal(w, uint32(streams), w.quota(clientIf))
		}},
		{"of streams that one side has closed, after ten seconds without a packet of the other", func(w *world) {
			many := crowded(w)
			for i, p := range many {
				w.leavesAs(tcp(w.client, 6000+uint16(i), w.outside, 443, fin), func(uint16) frame { return tcp(w.host, p, w.outside, 443, fin) })
			}
			silent(w, 11)
			for i, p := range many {
				w.answers(6000+uint16(i), p, data)
			}
			w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn)).dropped("snat-ports")
		}},
		{"of datagrams after half a minute", func(w *world) {
			w.leaves(true)
			var many []uint16
			for sport := range uint16(streams) {
				many = append(many, w.send(fromClient(), udp(w.client, 6000+sport, w.outside, 443, "q")).sourcePort())
			}
			w.taken(w.outside, 443, protoUDP, many...)
			silent(w, 25)
			w.send(fromClient(), udp(w.client, 5000, w.outside, 443, "q")).dropped("snat-ports")
			silent(w, 31)
			for sport := uint16(5000); ; sport++ {
				require.Less(w, sport, uint16(5100))
				if r := w.send(fromClient(), udp(w.client, sport, w.outside, 443, "q")); r.verdict == verdictRedirect {
					require.Contains(w, many, r.sourcePort())
					break
				}
			}
		}},
		{"of its own flows, where an endpoint has as many as it may", func(w *world) {
			many := crowded(w)
			for i, p := range many {
				w.closes(6000+uint16(i), p)
			}
			silent(w, 11)
			require.NoError(w, testDP.maps["quotas"].Put(uint32(clientIf), uint32(16384)))
			require.NoError(w, testDP.maps["quotas"].Put(uint32(backendIf), uint32(16384)))
			w.send(fromBackend(), tcp(w.backend, 5001, w.outside, 443, syn)).dropped("snat-quota")
			w.send(fromClient(), tcp(w.client, 5001, w.outside, 444, syn)).dropped("snat-quota")
			_, p := another(w)
			require.Contains(w, many, p)
			require.Equal(w, uint32(16384), w.quota(clientIf))
		}},
	})
}

// routerStays has the uplink's router found for one test: one that is nowhere ends a socket that connects after three seconds.
func (w *world) routerStays() {
	w.Helper()
	router := &netlink.Neigh{LinkIndex: uplinkIf, IP: w.router.AsSlice(), HardwareAddr: mac(0x99), State: netlink.NUD_PERMANENT}
	require.NoError(w, netlink.NeighSet(router))
	w.Cleanup(func() { require.NoError(w, netlink.NeighDel(router)) })
}

// connects makes a socket of the host's own that is on its way from a port to somebody outside.
func (w *world) connects(typ int, from uint16, to netip.AddrPort) (fd int) {
	w.Helper()
	family := unix.AF_INET
	if w.v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(w, err)
	require.NoError(w, unix.Bind(fd, sockaddr(family, netip.AddrPortFrom(w.host, from))))
	if err := unix.Connect(fd, sockaddr(family, to)); err != nil {
		require.ErrorIs(w, err, unix.EINPROGRESS)
	}
	return fd
}

func TestMasqueradingErrors(t *testing.T) {
	both(t, []scenario{
		{"a container's error about an answer reaches the server by the names it knows", func(w *world) {
			w.leaves(true)
			p := w.leavesAs(udp(w.client, 5000, w.outside, 53, "q"), func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			got, sent := udp(w.outside, 53, w.client, 5000, "a").quote(), udp(w.outside, 53, w.host, p, "a").quote()
			copy(sent[len(sent)-2:], got[len(got)-2:]) // the quoted checksum is the container's
			w.leavesAs(unreachable(w.client, w.outside, true, got), func(uint16) frame { return unreachable(w.host, w.outside, true, sent) })
		}},
		{"its error about what nobody sent it goes nowhere", func(w *world) {
			w.leaves(true)
			w.leavesAs(udp(w.client, 5000, w.outside, 53, "q"), func(p uint16) frame { return udp(w.host, p, w.outside, 53, "q") })
			w.send(fromClient(), unreachable(w.client, w.outside, true, udp(w.outside, 53, w.client, 5001, "a").quote())).dropped("no-route")
			w.send(fromBackend(), unreachable(w.backend, w.outside, true, udp(w.outside, 53, w.client, 5000, "a").quote())).dropped("no-route")
		}},
		{"a forged quote is related to nothing", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			p := w.opens(5000)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn))
			for _, quoted := range []frame{
				tcp(w.host, p, w.outside, 444, syn), tcp(w.host, p+1, w.outside, 443, syn), tcp(w.host, p, w.stranger(), 443, syn),
				tcp(w.client, 5000, w.outside, 443, syn), tcp(w.outside, 443, w.host, p, synAck), udp(w.host, p, w.outside, 443, "q"),
				tcp(w.host, 80, w.outside, 5001, synAck), tcp(w.host, 81, w.outside, 5000, synAck), tcp(w.outside, 5000, w.host, 80, syn),
			} {
				w.send(fromOutside(), unreachable(w.router, w.host, false, quoted.quote())).untouched()
			}
		}},
		{"a path MTU reaches the sender", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			typ, code := uint8(3), uint8(4)
			if w.v6 {
				typ, code = 2, 0
			}
			w.send(fromOutside(), icmp(w.router, w.host, typ, code, 1280, tcp(w.host, p, w.outside, 443, data).quote())).
				toClient(icmp(w.router, w.client, typ, code, 1280, tcp(w.client, 5000, w.outside, 443, data).quote()))
		}},
		{"a path MTU reaches the backend of a published port, and its own error the client", func(w *world) {
			w.leaves(true)
			w.publish(w.host, 80, ProtocolTCP)
			w.send(fromOutside(), tcp(w.outside, 5000, w.host, 80, syn))
			typ, code := uint8(3), uint8(4)
			if w.v6 {
				typ, code = 2, 0
			}
			w.send(fromOutside(), icmp(w.router, w.host, typ, code, 1280, tcp(w.host, 80, w.outside, 5000, data).quote())).
				toBackend(icmp(w.router, w.backend, typ, code, 1280, tcp(w.backend, 8080, w.outside, 5000, data).quote()))
			w.send(fromBackend(), unreachable(w.backend, w.outside, true, tcp(w.outside, 5000, w.backend, 8080, syn).quote())).
				leftAs(func(uint16) frame {
					return unreachable(w.host, w.outside, true, tcp(w.outside, 5000, w.host, 80, syn).quote())
				})
		}},
		{"spoofed answers are the host's: another server, port or protocol", func(w *world) {
			w.leaves(true)
			p := w.opens(5000)
			w.send(fromOutside(), tcp(w.stranger(), 443, w.host, p, data)).untouched()
			w.send(fromOutside(), tcp(w.outside, 444, w.host, p, data)).untouched()
			w.send(fromOutside(), tcp(w.outside, 443, w.host, p^1, data)).untouched()
			w.send(fromOutside(), udp(w.outside, 443, w.host, p, "a")).untouched()
			w.send(fromClient(), tcp(w.host, p, w.outside, 443, data)).dropped("spoofed")
		}},
	})
}
