// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

// fakeNames knows what a test tells it.
type fakeNames struct {
	mu      sync.Mutex
	answers map[string]service.Answer
	unread  map[netip.Addr]bool
	changed chan struct{}
}

func (f *fakeNames) Resolve(cookie uint64, name string) service.Answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answers[fmt.Sprint(cookie, strings.ToLower(name))]
}

func (f *fakeNames) ResolvePTR(cookie uint64, addr netip.Addr) (string, bool) {
	return "web.shop", cookie == 1 && (addr == netip.MustParseAddr("10.96.1.1") || addr == netip.MustParseAddr("fd6d::1"))
}

func (f *fakeNames) Unread(addr netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unread[addr]
}

func (f *fakeNames) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// change tells of facts the way a manager does.
func (f *fakeNames) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

func known(addrs ...string) service.Answer {
	a := service.Answer{Known: true}
	for _, s := range addrs {
		if addr := netip.MustParseAddr(s); addr.Is4() {
			a.Addrs4 = append(a.Addrs4, addr)
		} else {
			a.Addrs6 = append(a.Addrs6, addr)
		}
	}
	return a
}

// loopback is the network of a sandbox that is the test's own netns.
type loopback struct{ engine string }

func (l loopback) Listen(Sandbox) (net.PacketConn, net.Listener, error) {
	return Listen(netip.MustParseAddr("127.0.0.1"))
}

func (l loopback) Dial(ctx context.Context, _ Sandbox, network string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, l.engine)
}

// engine starts a resolver in the engine's place and returns its address.
func engine(t testing.TB, handle dns.HandlerFunc) string {
	udp, tcp, err := Listen(netip.MustParseAddr("127.0.0.1"))
	require.NoError(t, err)
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handle}, {Listener: tcp, Handler: handle}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return udp.LocalAddr().String()
}

// static answers every A with one address, "big." truncated, and "silent." never.
func static(w dns.ResponseWriter, q *dns.Msg) {
	var m dns.Msg
	m.SetReply(q)
	switch name := q.Question[0].Name; {
	case strings.HasSuffix(name, "silent."):
		return
	case strings.HasPrefix(name, "big.") && w.LocalAddr().Network() == "udp":
		m.Truncated = true
	case strings.HasPrefix(name, "nx."):
		m.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600}, A: net.IPv4(172, 20, 0, 2)}}
	}
	_ = w.WriteMsg(&m)
}

// serve starts a server with one sandbox, of cookie 1, and asserts that it leaves nothing running.
func serve(t testing.TB, names *fakeNames, engine string) (server *Server, addr string) {
	names.changed = make(chan struct{})
	before := runtime.NumGoroutine()
	server = New(names, loopback{engine})
	port, err := server.Add(Sandbox{Cookie: 1, Key: "test"})
	require.NoError(t, err)
	again, err := server.Add(Sandbox{Cookie: 1, Key: "test"})
	require.NoError(t, err)
	require.Equal(t, port, again)
	t.Cleanup(func() {
		server.Close()
		for deadline := time.Now().Add(2 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		require.LessOrEqual(t, runtime.NumGoroutine(), before, "a goroutine is left")
		_, err := server.Add(Sandbox{Cookie: 2})
		require.Error(t, err)
	})
	return server, fmt.Sprintf("127.0.0.1:%d", port)
}

func ask(t testing.TB, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: upstreamTimeout + 2*time.Second}
	reply, _, err := c.Exchange(q, addr)
	require.NoError(t, err)
	return reply
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

// lines writes a reply as its code, flags and records.
func lines(m *dns.Msg) string {
	s := dns.RcodeToString[m.Rcode]
	if m.Authoritative {
		s += " aa"
	}
	if m.Truncated {
		s += " tc"
	}
	for _, rr := range m.Answer {
		s += " | " + strings.ReplaceAll(rr.String(), "\t", " ")
	}
	return s
}

func TestAnswers(t *testing.T) {
	names := &fakeNames{answers: map[string]service.Answer{
		"1web.":       known("10.96.1.1", "fd6d::1"),
		"1web.shop.":  known("10.96.1.1"),
		"1tasks.web.": known(),
	}}
	_, addr := serve(t, names, engine(t, static))
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"web.", dns.TypeA, "NOERROR aa | web. 5 IN A 10.96.1.1"},
		{"wEb.", dns.TypeAAAA, "NOERROR aa | wEb. 5 IN AAAA fd6d::1"},
		{"web.shop.", dns.TypeAAAA, "NOERROR aa"},
		{"web.", dns.TypeMX, "NOERROR aa"},
		{"web.", dns.TypeHTTPS, "NOERROR aa"},
		{"web.shop.", dns.TypeANY, "NOERROR aa | web.shop. 5 IN A 10.96.1.1"},
		{"tasks.web.", dns.TypeA, "NOERROR aa"},
		{"1.1.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa | 1.1.96.10.in-addr.arpa. 5 IN PTR web.shop."},
		{"1.1.96.10.in-addr.arpa.", dns.TypeA, "NOERROR aa"},
		{"1." + strings.Repeat("0.", 27) + "d.6.d.f.ip6.arpa.", dns.TypePTR, "NOERROR aa | 1." + strings.Repeat("0.", 27) + "d.6.d.f.ip6.arpa. 5 IN PTR web.shop."},
		{"other.", dns.TypeA, "NOERROR | other. 600 IN A 172.20.0.2"},
		{"nx.other.", dns.TypeA, "NXDOMAIN"},
		{"1.1.1.1.in-addr.arpa.", dns.TypePTR, "NOERROR"},
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range tests {
			t.Run(network+" "+tt.name+dns.TypeToString[tt.qtype], func(t *testing.T) {
				q := question(tt.name, tt.qtype)
				reply := ask(t, network, addr, q)
				require.Equal(t, tt.want, lines(reply))
				require.Equal(t, q.Question, reply.Question)
				require.True(t, reply.RecursionDesired)
			})
		}
	}
	require.Equal(t, "NOERROR tc", lines(ask(t, "udp", addr, question("big.", dns.TypeA))), "the engine's own truncation")
	require.Equal(t, "NOERROR | big. 600 IN A 172.20.0.2", lines(ask(t, "tcp", addr, question("big.", dns.TypeA))))
}

func TestSizesAndEDNS(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("10.0.0.%d", i))
	}
	_, addr := serve(t, &fakeNames{answers: map[string]service.Answer{"1tasks.web.": known(many...)}}, "")
	for _, tt := range []struct {
		network string
		edns    uint16
		size    int
		tc      bool
	}{{"udp", 0, 512, true}, {"udp", 1232, 1232, true}, {"udp", 65535, 1232, true}, {"udp", 100, 512, true}, {"tcp", 0, 65535, false}} {
		q := question("tasks.web.", dns.TypeA)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, true)
		}
		reply := ask(t, tt.network, addr, q)
		require.Equal(t, tt.tc, reply.Truncated)
		reply.Compress = true
		require.LessOrEqual(t, reply.Len(), tt.size)
		require.Equal(t, tt.edns > 0, reply.IsEdns0() != nil)
		if tt.edns > 0 {
			require.True(t, reply.IsEdns0().Do())
		}
	}
	q := question("tasks.web.", dns.TypeA)
	q.SetEdns0(1232, false)
	q.IsEdns0().SetVersion(1)
	require.Equal(t, dns.RcodeBadVers, ask(t, "udp", addr, q).Rcode)
}

func TestForwardsTheSameBytes(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer udp.Close()
	_, addr := serve(t, &fakeNames{}, udp.LocalAddr().String())
	client, err := net.Dial("udp", addr)
	require.NoError(t, err)
	defer client.Close()
	q := question("ExAmple.com.", dns.TypeTXT)
	q.SetEdns0(4096, true)
	packed, err := q.Pack()
	require.NoError(t, err)
	_, err = client.Write(packed)
	require.NoError(t, err)
	buf := make([]byte, 4096)
	n, from, err := udp.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, packed, buf[:n])

	reply := append([]byte{buf[0], buf[1]}, []byte("whatever the engine says")...)
	_, err = udp.WriteTo([]byte("stray packet with another id"), from)
	require.NoError(t, err)
	_, err = udp.WriteTo(reply, from)
	require.NoError(t, err)
	n, err = client.Read(buf)
	require.NoError(t, err)
	require.Equal(t, reply, buf[:n])
}

func TestLookup(t *testing.T) {
	rr := func(text string) dns.RR {
		record, err := dns.NewRR(text)
		require.NoError(t, err)
		return record
	}
	network := loopback{engine(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name + dns.TypeToString[q.Question[0].Qtype] {
		case "web.A":
			m.Answer = []dns.RR{rr("web. 600 IN A 172.20.0.2"), rr("web. 600 IN A 172.20.0.3")}
		case "web.AAAA":
			m.Answer = []dns.RR{rr("web. 600 IN AAAA fd00::2")}
		case "broken.A":
			m.Rcode = dns.RcodeServerFailure
		case "none.A":
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	for _, test := range []struct {
		name string
		v6   bool
		want string
	}{
		{"web", false, "[172.20.0.2 172.20.0.3]"}, {"web", true, "[fd00::2]"}, {"none", false, "[]"},
	} {
		got, err := Lookup(t.Context(), network, Sandbox{Cookie: 1}, test.name, test.v6)
		require.NoError(t, err)
		require.Equal(t, test.want, fmt.Sprint(got))
	}
	_, err := Lookup(t.Context(), network, Sandbox{Key: "/run/x"}, "broken", false)
	require.EqualError(t, err, "ask the engine's resolver in netns /run/x for broken: SERVFAIL")
}

func TestWaitsForNamesOfAnEndpoint(t *testing.T) {
	endpoint := netip.MustParseAddr("172.20.0.2") // what the engine answers
	for _, network := range []string{"udp", "tcp"} {
		names := &fakeNames{answers: map[string]service.Answer{}, unread: map[netip.Addr]bool{endpoint: true}}
		_, addr := serve(t, names, engine(t, static))
		time.AfterFunc(100*time.Millisecond, func() {
			names.change(func() { names.answers["1web."] = known("10.96.1.1") })
			names.change(func() { delete(names.unread, endpoint) })
		})
		require.Equal(t, "NOERROR aa | web. 5 IN A 10.96.1.1", lines(ask(t, network, addr, question("web.", dns.TypeA))))

		names.change(func() { names.unread[endpoint] = true })
		start := time.Now()
		require.Equal(t, "NOERROR | late. 600 IN A 172.20.0.2", lines(ask(t, network, addr, question("late.", dns.TypeA))))
		require.GreaterOrEqual(t, time.Since(start), unreadTimeout)
	}
}

func TestEngineAwayOrSilent(t *testing.T) {
	t.Run("away", func(t *testing.T) {
		_, addr := serve(t, &fakeNames{}, "127.0.0.1:1")
		for _, network := range []string{"udp", "tcp"} {
			require.Equal(t, "SERVFAIL", lines(ask(t, network, addr, question("other.", dns.TypeA))))
		}
	})
	t.Run("silent", func(t *testing.T) {
		_, addr := serve(t, &fakeNames{}, engine(t, static))
		start := time.Now()
		require.Equal(t, "SERVFAIL", lines(ask(t, "udp", addr, question("silent.", dns.TypeA))))
		require.GreaterOrEqual(t, time.Since(start), upstreamTimeout)
	})
}

func TestFloodIsBounded(t *testing.T) {
	names := &fakeNames{answers: map[string]service.Answer{"1web.": known("10.96.1.1")}}
	server, addr := serve(t, names, engine(t, static))
	client, err := net.Dial("udp", addr)
	require.NoError(t, err)
	defer client.Close()
	before := runtime.NumGoroutine()
	packed, err := question("silent.", dns.TypeA).Pack()
	require.NoError(t, err)
	for range 2000 {
		_, _ = client.Write(packed)
	}
	for range 2 * maxStreams {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer c.Close()
	}
	time.Sleep(100 * time.Millisecond)
	// Each waiting query may have a goroutine in the test's engine as well.
	require.Less(t, runtime.NumGoroutine(), before+2*maxForwards+2*maxStreams)
	require.Equal(t, "NOERROR aa | web. 5 IN A 10.96.1.1", lines(ask(t, "udp", addr, question("web.", dns.TypeA))), "our own names go on")
	start := time.Now()
	server.Remove(1)
	server.Remove(1)
	require.Less(t, time.Since(start), time.Second)
}

func TestAddFails(t *testing.T) {
	s := New(&fakeNames{}, failing{})
	_, err := s.Add(Sandbox{Cookie: 1, Key: "/run/netns/x"})
	require.ErrorContains(t, err, "listen for DNS in netns /run/netns/x: no such netns")
	s.Close()
}

type failing struct{ loopback }

func (failing) Listen(Sandbox) (net.PacketConn, net.Listener, error) {
	return nil, nil, errors.New("no such netns")
}

func FuzzAnswer(f *testing.F) {
	q := question("web.", dns.TypeA)
	q.SetEdns0(512, true)
	for _, m := range []*dns.Msg{q, question("1.1.96.10.in-addr.arpa.", dns.TypePTR), question("x.ip6.arpa.", dns.TypeANY), {}} {
		packed, err := m.Pack()
		require.NoError(f, err)
		f.Add(packed)
		f.Add(packed[:len(packed)-1])
	}
	names := &fakeNames{answers: map[string]service.Answer{"1web.": known("10.96.1.1", "fd6d::1")}}
	r := newResolver(Sandbox{Cookie: 1}, names, loopback{}, nil, nil, 0, &counts{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, udp := range []bool{true, false} {
			reply, forward := r.answer(packet, udp)
			if reply == nil {
				continue
			}
			require.False(t, forward)
			require.GreaterOrEqual(t, len(reply), headerSize)
			require.Equal(t, packet[:2], reply[:2])
			require.NotZero(t, reply[2]&0x80)
			require.NoError(t, new(dns.Msg).Unpack(reply))
		}
		serverFailure(append(packet, make([]byte, headerSize)...))
		replySize(packet)
	})
}
