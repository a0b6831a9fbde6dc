// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/service"
)

// once tells of an endpoint whose names have not been read, until it is asked again.
type once struct {
	*fakeNames
	asked map[netip.Addr]bool
}

func (o *once) Unread(addr netip.Addr) bool {
	was := o.asked[addr]
	o.asked[addr] = true
	return !was
}

// Changed is closed: something always has.
func (o *once) Changed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// away is a sandbox whose engine cannot be reached.
type away struct{ loopback }

func (away) Dial(context.Context, Sandbox, string) (net.Conn, error) {
	return nil, errors.New("no engine")
}

func fuzzedResolver() *resolver {
	names := &once{&fakeNames{answers: map[string]service.Answer{"1web.": known("10.96.1.1", "fd6d::1")}}, map[netip.Addr]bool{}}
	return newResolver(Sandbox{Cookie: 1}, names, away{}, nil, nil, 0, &counts{})
}

// FuzzUpstream gives any reply of the engine's, or of what is in its place, to a query that was forwarded: it is passed
// on as it is, unless what it names has made the query ours.
func FuzzUpstream(f *testing.F) {
	q := question("other.", dns.TypeA)
	packed, err := q.Pack()
	require.NoError(f, err)
	var m dns.Msg
	m.SetReply(q)
	m.Answer = []dns.RR{
		&dns.A{Hdr: dns.RR_Header{Name: "other.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(172, 20, 0, 2)},
		&dns.AAAA{Hdr: dns.RR_Header{Name: "other.", Rrtype: dns.TypeAAAA, Class: dns.ClassINET}, AAAA: net.ParseIP("fd00::2")},
		&dns.CNAME{Hdr: dns.RR_Header{Name: "other.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "web."},
	}
	reply, err := m.Pack()
	require.NoError(f, err)
	ours, err := question("web.", dns.TypeA).Pack()
	require.NoError(f, err)
	for cut := 0; cut < len(reply); cut += 7 {
		f.Add(packed, reply[:cut])
	}
	f.Add(packed, reply)
	f.Add(ours, reply)
	f.Add(packed, append(reply[:len(reply):len(reply)], 0xc0, 0x0c))
	f.Fuzz(func(t *testing.T, query, reply []byte) {
		if len(query) < headerSize {
			return // answer() forwards none
		}
		r := fuzzedResolver()
		for _, udp := range []bool{true, false} {
			got := r.forward(query, udp, func(context.Context, []byte) ([]byte, error) { return reply, nil })
			own, forward := r.answer(query, udp)
			if forward || own == nil {
				require.Equal(t, reply, got)
			}
			got = r.forward(query, udp, func(context.Context, []byte) ([]byte, error) { return nil, io.ErrUnexpectedEOF })
			require.Equal(t, query[:2], got[:2])
			require.NotZero(t, got[2]&0x80)
			require.Equal(t, byte(dns.RcodeServerFailure), got[3]&15)
		}
	})
}

// FuzzStream sends any bytes over TCP to us, and as the engine's: whoever does not keep to the format is hung up on.
func FuzzStream(f *testing.F) {
	for _, name := range []string{"web.", "other."} {
		packed, err := question(name, dns.TypeA).Pack()
		require.NoError(f, err)
		framed := append([]byte{0, byte(len(packed))}, packed...)
		f.Add(framed)
		f.Add(append(framed, framed...))
		f.Add(framed[:len(framed)-1])
	}
	f.Add([]byte{0xff, 0xff, 0})
	f.Add([]byte{0, 0, 0, 1, 7, 0, 12})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := fuzzedResolver()
		ours := saying(data)
		done := make(chan struct{})
		go func() {
			r.serveStream(ours)
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the connection stays open")
		}

		ours = saying(data)
		defer ours.Close()
		query, err := question("other.", dns.TypeA).Pack()
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if reply, err := exchange(ctx, stream{&dns.Conn{Conn: ours}}, query); err == nil {
			require.Equal(t, query[:2], reply[:2])
		}
	})
}

// saying is our end of a connection whose other end says data and closes it, whatever it hears.
func saying(data []byte) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = theirs.Write(data)
		theirs.Close()
	}()
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	return ours
}
