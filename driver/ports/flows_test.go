// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func flowsOf(h *Holder) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.flows.byClient)
}

func TestDatagramsArePassedOn(t *testing.T) {
	for name, c := range map[string]struct {
		server   string
		held, to netip.Addr
	}{
		"IPv4":                   {"127.0.0.1:0", loop4, loop4},
		"of every address":       {"127.0.0.1:0", any4, netip.MustParseAddr("127.0.0.9")}, // the client takes answers from there only
		"IPv6":                   {"[::1]:0", any6, loop6},
		"an IPv6 client to IPv4": {"127.0.0.1:0", any6, loop6},
		"an IPv4 client to IPv6": {"[::1]:0", any4, loop4},
		"both, from IPv4":        {"127.0.0.1:0", netip.Addr{}, netip.MustParseAddr("127.0.0.9")},
		"both, from IPv6":        {"127.0.0.1:0", netip.Addr{}, loop6},
		"both, to IPv6":          {"[::1]:0", netip.Addr{}, netip.MustParseAddr("127.0.0.9")},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHolder(t)
			port := hold(t, h, "udp", echoPackets(t, c.server), c.held)
			client := dial(t, "udp", netip.AddrPortFrom(c.to, port))
			for _, size := range []int{1, 1000, 9000} {
				word := strings.Repeat("x", size)
				_, err := client.Write([]byte(word))
				require.NoError(t, err)
				b := make([]byte, maxPacket)
				n, err := client.Read(b)
				require.NoError(t, err)
				_, answer, _ := strings.Cut(string(b[:n]), " ")
				assert.Equal(t, word, answer)
			}
		})
	}
}

// TestAClientKeepsItsFlow: the server takes two clients for two, and one for one.
func TestAClientKeepsItsFlow(t *testing.T) {
	h := newHolder(t)
	port := hold(t, h, "udp", echoPackets(t, "127.0.0.1:0"), any4)
	one, other := dial(t, "udp", netip.AddrPortFrom(loop4, port)), dial(t, "udp", netip.AddrPortFrom(loop4, port))
	first, _ := say(t, one, "a")
	again, _ := say(t, one, "b")
	second, _ := say(t, other, "c")
	assert.Equal(t, first, again)
	assert.NotEqual(t, first, second)
	assert.Equal(t, 2, flowsOf(h))
}

// TestFlowsFollowThePort: its new server gets what comes after the change.
func TestFlowsFollowThePort(t *testing.T) {
	h := newHolder(t)
	port := hold(t, h, "udp", echoPackets(t, "127.0.0.1:0"), any4)
	client := exchange(t, "udp", loop4, port)
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	require.NoError(t, h.Hold(Port{netip.AddrPortFrom(any4, port), "udp"}, server.LocalAddr().(*net.UDPAddr).AddrPort()))
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, _, err = server.ReadFrom(make([]byte, 1))
	require.NoError(t, err)
}

func TestIdleFlowsAreForgotten(t *testing.T) {
	h := newHolder(t, func(l *limits) { l.idle = 30 * time.Millisecond })
	port := hold(t, h, "udp", echoPackets(t, "127.0.0.1:0"), any4, any6)
	for range 3 { // the last of them ends everything, and it begins anew
		exchange(t, "udp", loop4, port)
		exchange(t, "udp", loop6, port)
		idle(t, h)
	}
}

// TestTooManyFlows: whoever comes last is served.
func TestTooManyFlows(t *testing.T) {
	h := newHolder(t, func(l *limits) { l.flows = 3 })
	port := hold(t, h, "udp", echoPackets(t, "127.0.0.1:0"), any4)
	for range 20 {
		exchange(t, "udp", loop4, port)
	}
	assert.Equal(t, 3, flowsOf(h))
	assert.Len(t, h.own, 3)
}

// TestFlowsEndWithTheirPort and not with another.
func TestFlowsEndWithTheirPort(t *testing.T) {
	h := newHolder(t)
	server := echoPackets(t, "127.0.0.1:0")
	one, other := hold(t, h, "udp", server, any4), hold(t, h, "udp", server, any4)
	exchange(t, "udp", loop4, one)
	client := exchange(t, "udp", loop4, other)
	h.Release(Port{netip.AddrPortFrom(any4, one), "udp"})
	assert.Equal(t, 1, flowsOf(h))
	_, answer := say(t, client, "still here")
	assert.Equal(t, "still here", answer)
	h.Release(Port{netip.AddrPortFrom(any4, other), "udp"})
	idle(t, h)
}

// TestStrangersAnswerNothing: only the server's answers reach the client.
func TestStrangersAnswerNothing(t *testing.T) {
	h := newHolder(t)
	port := hold(t, h, "udp", echoPackets(t, "127.0.0.1:0"), any4)
	client := dial(t, "udp", netip.AddrPortFrom(loop4, port))
	from, _ := say(t, client, "hello")
	stranger := dial(t, "udp", netip.MustParseAddrPort(from))
	_, err := stranger.Write([]byte("x lie"))
	require.NoError(t, err)
	_, answer := say(t, client, "truth")
	assert.Equal(t, "truth", answer)
}
