// SPDX-License-Identifier: Apache-2.0

package turns

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestTurns(t *testing.T) {
	addr := free(t)
	go func() { _ = Serve("", addr) }() // it has no end but the test's
	require.Eventually(t, func() bool {
		_, err := Run(CRR, addr, time.Millisecond, "")
		return err == nil
	}, 5*time.Second, 5*time.Millisecond)
	for _, kind := range Kinds {
		r, err := Run(kind, addr, 20*time.Millisecond, "")
		require.NoError(t, err)
		require.Equal(t, kind, r.Mode)
		require.Positive(t, r.Transactions)
		require.GreaterOrEqual(t, r.Seconds, 0.02)
		require.InDelta(t, float64(r.Transactions)/r.Seconds, r.PerSecond, 0.001)
		require.Positive(t, r.P50)
		require.GreaterOrEqual(t, r.P99, r.P50)
	}
}

func TestErrors(t *testing.T) {
	_, err := Run("stream", netip.MustParseAddrPort("127.0.0.1:1"), time.Second, "")
	require.EqualError(t, err, `no such mode "stream": choose rr, crr, udp`)
	_, err = Run(RR, free(t), time.Second, "")
	require.ErrorContains(t, err, "connect: connection refused")
	_, err = Run(RR, free(t), time.Second, "no-such-control")
	require.ErrorContains(t, err, "set the congestion control no-such-control: ")
}

func TestQuantile(t *testing.T) {
	h := new(histogram)
	for i := range 100 {
		h.add(time.Duration(i) * time.Microsecond)
	}
	require.InDelta(t, 49.1, h.quantile(0.5), 0.001)
	require.InDelta(t, 98.1, h.quantile(0.99), 0.001)
	h.add(time.Hour)
	require.InDelta(t, 104857.6, h.quantile(1), 0.1, "all that are longer are the last")
}
