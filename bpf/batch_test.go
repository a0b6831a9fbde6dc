// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

func TestManyServicesAtOnce(t *testing.T) {
	clearMaps(t)
	const n = 500
	lan := []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}
	var list []Service
	var frontends []Frontend
	held := make([]Held, n)
	for i := range uint16(n) {
		f := Frontend{Addr: netip.IPv4Unspecified(), Port: 20000 + i, Protocol: ProtocolTCP}
		frontends = append(frontends, f)
		list = append(list, Service{Frontend: f, ID: uint32(i) + 1, Published: true, Slots: []uint32{1, 2}, Reserve: []uint32{3}, Sources: lan})
	}
	write := func() {
		t.Helper()
		require.NoError(t, testDP.PutServices(list, held))
		got, err := testDP.Services()
		require.NoError(t, err)
		require.ElementsMatch(t, list, got)
		for i, s := range list {
			held[i] = s.Held()
		}
	}
	write()
	require.Len(t, entries(t, "services"), 4*n)
	require.Len(t, entries(t, "sources"), n)

	for i := range list { // with less, by another id, and for everybody
		list[i].ID, list[i].Slots, list[i].Reserve, list[i].Sources = uint32(i)+n+1, []uint32{2}, nil, nil
	}
	write()
	require.Len(t, entries(t, "services"), 2*n)
	require.Empty(t, entries(t, "sources"))

	for _, i := range []int{0, 7, 8, n - 1} { // somebody else removed them
		require.NoError(t, testDP.DeleteService(frontends[i]))
	}
	require.NoError(t, testDP.DeleteServices(frontends, held))
	require.Empty(t, entries(t, "services"))
	require.NoError(t, testDP.DeleteServices(frontends, held), "deleting what is missing is no error")
}

func TestWhichOfManyDoesNotFit(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 3})
	require.NoError(t, err)
	defer m.Close()
	var p puts[uint32, uint32]
	failed, err := p.write(m)
	require.NoError(t, err, "nothing to write")
	require.Zero(t, failed)
	for i := range uint32(5) {
		p.add(10+i, i)
	}
	failed, err = p.write(m)
	require.ErrorContains(t, full(err), "the map is full")
	require.EqualValues(t, 13, failed)
}
