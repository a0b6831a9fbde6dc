// SPDX-License-Identifier: Apache-2.0

package service

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

// batchMaps keep changes back, as nftables do.
type batchMaps struct {
	*fakeMaps
	calls []string
	err   error
}

func (b *batchMaps) PutService(s bpf.Service) error {
	b.calls = append(b.calls, "put")
	return b.fakeMaps.PutService(s)
}

func (b *batchMaps) PutServices(list []bpf.Service, _ []bpf.Held) error {
	for _, s := range list {
		if err := b.PutService(s); err != nil {
			return err
		}
	}
	return nil
}

func (b *batchMaps) DeleteBackend(id uint32) error {
	b.calls = append(b.calls, "delete backend")
	return b.fakeMaps.DeleteBackend(id)
}

func (b *batchMaps) Flush() error {
	b.calls = append(b.calls, "flush")
	return b.err
}

func TestABatchIsFlushedBeforeItsBackendsGo(t *testing.T) {
	maps := &batchMaps{fakeMaps: newFakeMaps(t)}
	m, err := New(state.Memory(), maps, Options{})
	require.NoError(t, err)
	_, err = m.Add(spec("10.96.0.100:5201", "192.168.10.10:5201"))
	require.NoError(t, err)
	require.Equal(t, []string{"put", "put", "flush"}, maps.calls, "once")
	require.NoError(t, m.Sync())
	maps.calls = nil
	require.NoError(t, m.Remove("10.96.0.100:5201"))
	require.Less(t, slices.Index(maps.calls, "flush"), slices.Index(maps.calls, "delete backend"))

	maps.err = errInjected
	_, err = m.Add(spec("10.96.0.100:5201", "192.168.10.10:5201"))
	require.ErrorIs(t, err, errInjected)
	require.ErrorIs(t, m.Err(), errInjected)
	maps.err = nil
	require.NoError(t, m.Reconcile(), "the next one makes it good")
	require.NoError(t, m.Err())
}
