// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"io"
	"net/netip"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

var (
	loop4 = netip.MustParseAddr("127.0.0.1")
	loop6 = netip.IPv6Loopback()
)

func newHolder(t testing.TB) *Holder {
	log := logrus.New()
	log.SetOutput(io.Discard)
	h, err := New(func(int) error { return nil }, log)
	require.NoError(t, err)
	t.Cleanup(h.Close)
	return h
}
