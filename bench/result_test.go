// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// values are six runs around a middle.
func values(middle float64) []float64 {
	var out []float64
	for _, d := range []float64{0, 0.01, -0.01, 0.02, -0.02, 0} {
		out = append(out, middle*(1+d))
	}
	return out
}

// ways are what two modes gave, directly and by the VIP.
func ways(mode string, ebpf bool, direct, vip, p50 float64) series {
	via := viaNftables
	if ebpf {
		via = viaEBPF
	}
	return series{
		{Mode: mode, EBPF: ebpf, Path: pathDirect}: {streamRate: values(direct), tcpRate: values(50_000)},
		{Mode: mode, EBPF: ebpf, Path: pathVIP, Via: via}: {
			streamRate: values(vip), tcpP50: values(p50), tcpP99: values(2 * p50), udpP50: values(p50), udpP99: values(2 * p50),
			connectRate: values(9000), cpuPerGB: values(0.8), tcpRate: values(50_000),
		},
	}
}

func merge(all ...series) Result {
	out := series{}
	for _, s := range all {
		for k, v := range s {
			out[k] = v
		}
	}
	return Result{Rows: figures(out)}
}

func TestJSON(t *testing.T) {
	r := merge(series{
		{Mode: "veth", EBPF: true, Path: pathDirect}:                             {streamRate: {20}},
		{Mode: "veth", EBPF: true, Path: pathVIP, Via: viaEBPF}:                  {streamRate: {19}},
		{Mode: "veth", EBPF: true, Path: pathVIP, Via: viaEBPF, Services: 1}:     {connectRate: {100}},
		{Mode: "veth", EBPF: true, Path: pathVIP, Via: viaEBPF, Services: 10000}: {connectRate: {90}},
	})
	got, err := json.Marshal(r.Rows)
	require.NoError(t, err)
	want := `[
{"mode":"veth","ebpf":true,"path":"direct","metric":"tcp_stream","value":20,"unit":"Gbit/s","runs":1,"low":20,"high":20},
{"mode":"veth","ebpf":true,"path":"vip","via":"ebpf","metric":"tcp_stream","value":19,"unit":"Gbit/s","runs":1,"low":19,"high":19},
{"mode":"veth","ebpf":true,"path":"vip","via":"ebpf","metric":"tcp_crr","value":100,"unit":"connections/s","runs":1,"low":100,"high":100,"services":1},
{"mode":"veth","ebpf":true,"path":"vip","via":"ebpf","metric":"tcp_crr","value":90,"unit":"connections/s","runs":1,"low":90,"high":90,"services":10000},
{"mode":"veth","ebpf":true,"path":"vip","via":"ebpf","metric":"tcp_stream_ratio","value":0.95,"unit":"ratio","runs":1,"low":0.95,"high":0.95,"against":"direct"},
{"mode":"veth","ebpf":true,"path":"vip","via":"ebpf","metric":"tcp_crr_ratio","value":0.9,"unit":"ratio","runs":1,"low":0.9,"high":0.9,"services":10000,"against":"1 service"}]`
	require.Empty(t, cmp.Diff(strings.ReplaceAll(want, "\n", ""), string(got)))
}

func TestTable(t *testing.T) {
	r := merge(ways("veth", false, 10, 8, 30), ways("veth", true, 12, 12, 20),
		series{{Mode: modeLoopback, Path: pathDirect}: {streamRate: values(30)}})
	r.Notes = []string{"this kernel has no netkit: it needs CONFIG_NETKIT"}
	var out bytes.Buffer
	require.NoError(t, r.WriteTable(&out))
	want := `this kernel has no netkit: it needs CONFIG_NETKIT

       MODE  DIRECT Gbit/s  VIP Gbit/s  VIP/DIRECT  TCP RR p50/p99 us  UDP RR p50/p99 us  CONNECTIONS/s  CPU s/GB
   loopback           30.0           -           -                  -                  -              -         -
       veth           10.0        8.00        0.80          30.0/60.0          30.0/60.0           9000      0.80
  veth+eBPF           12.0        12.0        1.00          20.0/40.0          20.0/40.0           9000      0.80
Medians. From TCP RR on, those of the path by the VIP where there is one.

RATIO       OF                AGAINST  VALUE  95 % INTERVAL  RUNS
tcp_stream  veth vip          direct   0.800  0.800 … 0.800  6
tcp_rr      veth vip          direct   1.000  1.000 … 1.000  6
tcp_stream  veth+eBPF direct  plain    1.200  1.200 … 1.200  6
tcp_rr      veth+eBPF direct  plain    1.000  1.000 … 1.000  6
tcp_stream  veth+eBPF vip     direct   1.000  1.000 … 1.000  6
tcp_rr      veth+eBPF vip     direct   1.000  1.000 … 1.000  6
tcp_stream  veth+eBPF vip     plain    1.500  1.500 … 1.500  6
tcp_rr      veth+eBPF vip     plain    1.000  1.000 … 1.000  6
tcp_crr     veth+eBPF vip     plain    1.000  1.000 … 1.000  6

On this machine use mode=veth: by a VIP it carries 12.0 Gbit/s and takes 20.0 us a turn (median); nothing else was measured.
`
	require.Empty(t, cmp.Diff(want, out.String()))
}

func TestScaleTable(t *testing.T) {
	way := func(ebpf bool, via string, services int) side {
		return side{Mode: "veth", EBPF: ebpf, Path: pathVIP, Via: via, Services: services}
	}
	r := merge(series{
		way(false, viaNftables, 1): {connectRate: values(8000)}, way(false, viaNftables, 500): {connectRate: values(2000)},
		way(false, viaIptables, 1): {connectRate: values(8000)}, way(false, viaIptables, 500): {connectRate: values(1000)},
		way(true, viaEBPF, 1): {connectRate: values(9000)}, way(true, viaEBPF, 500): {connectRate: values(9000)},
	})
	require.Empty(t, cmp.Diff(`CONNECTIONS/s  VIP BY    1 SERVICE  500 SERVICES  RATIO  95 % INTERVAL
veth           nftables  8000       2000          0.250  0.250 … 0.250
veth           iptables  8000       1000          0.125  0.125 … 0.125
veth+eBPF      ebpf      9000       9000          1.000  1.000 … 1.000
`, r.scaleTable()))
}

func TestRecommendation(t *testing.T) {
	one := ways("veth", true, 10, 10, 20)
	for side, metrics := range one {
		for metric := range metrics {
			one[side][metric] = metrics[metric][:1]
		}
	}
	for _, tt := range []struct {
		name string
		of   []series
		want string
	}{
		{"nothing with a VIP", []series{{{Mode: modeLoopback, Path: pathDirect}: {streamRate: {1}}}}, ""},
		{
			"far ahead", []series{ways("veth", true, 10, 10, 20), ways("bridge", true, 10, 7, 30)},
			"On this machine use mode=veth: by a VIP it carries 10.0 Gbit/s and takes 20.0 us a turn (median); every other is behind it by more than noise.",
		},
		{
			"as good, and simpler", []series{ways("veth", true, 10, 10, 20), ways("bridge", true, 10, 10.1, 19.9)},
			"On this machine use mode=veth: by a VIP it carries 10.0 Gbit/s and takes 20.0 us a turn (median); the difference to bridge+eBPF (which measured best) is within noise.",
		},
		{
			"the best, and one alike", []series{ways("veth", true, 10, 10, 20), ways("bridge", true, 10, 9.9, 20), ways("macvlan", true, 9, 9, 25)},
			"On this machine use mode=veth: by a VIP it carries 10.0 Gbit/s and takes 20.0 us a turn (median); the difference to bridge+eBPF is within noise.",
		},
		{
			"eBPF before plain", []series{ways("veth", false, 20, 20, 10), ways("ipvlan-l3", true, 10, 10, 20)},
			"On this machine use mode=ipvlan with ipvlan_mode=l3: by a VIP it carries 10.0 Gbit/s and takes 20.0 us a turn (median); nothing else was measured.",
		},
		{
			"too few runs", []series{one, ways("bridge", true, 5, 5, 40)},
			"On this machine use mode=veth: by a VIP it carries 10.0 Gbit/s and takes 20.0 us a turn (median); what is noise cannot be told from fewer than 6 runs.",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, merge(tt.of...).Recommendation())
		})
	}
}

func TestChart(t *testing.T) {
	r := merge(ways("veth", false, 10, 8, 30), ways("veth", true, 12, 12, 20),
		series{{Mode: modeLoopback, Path: pathDirect}: {streamRate: values(30)}})
	file := filepath.Join(t.TempDir(), "a.svg")
	require.NoError(t, r.WriteChart(file))
	svg, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, text := range []string{"veth+eBPF", "loopback", "Gbit/s", "vip", "direct"} {
		require.Contains(t, string(svg), text)
	}
	file = filepath.Join(t.TempDir(), "a.png")
	require.NoError(t, r.WriteChart(file))
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	_, err = png.Decode(bytes.NewReader(raw))
	require.NoError(t, err)
	require.ErrorContains(t, r.WriteChart("/no/such/a.svg"), "write the chart")
}

func TestModesAreTheDriversWithBothOfIPvlan(t *testing.T) {
	for _, mode := range Modes() {
		require.NotEmpty(t, variants()[mode]["mode"], mode)
		require.NotNil(t, wirings[mode], "%s can be compared with plain devices", mode)
	}
	require.True(t, slices.Contains(Modes(), modeIPvlanL3))
}

func TestRulesEndWithTheServiceThatIsMeasured(t *testing.T) {
	r := &rules{vip: plainVIP, server: serverAddr.Addr(), masquerade: true}
	require.Equal(t, `*nat
-A PREROUTING -d 10.97.0.0/32 -j DNAT --to-destination 192.168.10.10
-A PREROUTING -d 10.97.0.1/32 -j DNAT --to-destination 192.168.10.10
-A PREROUTING -d 10.96.0.100/32 -j DNAT --to-destination 192.168.10.10
-A POSTROUTING -s 192.168.10.0/24 -d 192.168.10.0/24 -j MASQUERADE
COMMIT
`, r.iptables(3))
}
