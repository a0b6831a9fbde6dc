// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/service"
)

func TestParseTarget(t *testing.T) {
	for _, s := range []string{"10.96.0.100:5201", "10.96.0.100", "[fd00::1]:80", "[fd00::1]"} {
		a, err := api.ParseTarget(s)
		require.NoError(t, err)
		assert.Equal(t, s, api.FormatTarget(a))
	}
	a, err := api.ParseTarget("[::ffff:10.0.0.1]:80")
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1:80", a.String())

	for s, want := range map[string]string{
		"":                "no IP address",
		":80":             "no IP address",
		"web:80":          "no IP address",
		"10.96.0.256:1":   "no IP address",
		"10.96.0.1:0":     "choose 1 to 65535",
		"10.96.0.1:":      "choose 1 to 65535",
		"10.96.0.1:http":  "choose 1 to 65535",
		"10.96.0.1:+80":   "choose 1 to 65535",
		"10.96.0.1:65536": "choose 1 to 65535",
		"fd00::1":         "in brackets",
		"fd00::1:80":      "in brackets",
		"[fd00::1":        "closing bracket",
		"[fd00::1]80":     "after the bracket",
		"[10.96.0.1]:80":  "no IP address",
	} {
		_, err := api.ParseTarget(s)
		assert.ErrorContains(t, err, want, s)
	}
}

func TestParseBackend(t *testing.T) {
	b, err := api.ParseBackend("[fd00::1]:80@7")
	require.NoError(t, err)
	assert.Equal(t, api.Backend{Address: "[fd00::1]:80", Weight: 7}, b)
	for s, want := range map[string]string{
		"10.0.0.1:80@0": "choose 1 to 100", "10.0.0.1:80@101": "choose 1 to 100", "10.0.0.1:80@": "choose 1 to 100",
		"0.0.0.0:80": "no unicast address", "224.0.0.1:80": "no unicast address", "[fe80::1%eth0]:80": "no unicast address",
		"255.255.255.255:80": "no unicast address",
	} {
		_, err := api.ParseBackend(s)
		assert.ErrorContains(t, err, want, s)
	}
}

func TestParseFrontend(t *testing.T) {
	f, err := api.ParseFrontend("[fd00::1]:80", "TCP")
	require.NoError(t, err)
	assert.Equal(t, api.Frontend{Address: "fd00::1", Port: 80, Protocol: "tcp"}, f)
	for _, s := range []string{"0.0.0.0:80", "127.0.0.1:80", "[::1]:80", "224.0.0.1:80", "[fe80::1]:80", "[ff02::1]:80", "255.255.255.255"} {
		_, err := api.ParseFrontend(s, "")
		assert.ErrorContains(t, err, "cannot be a virtual IP", s)
	}
	_, err = api.ParseFrontend("10.96.0.1:80", "sctp")
	assert.ErrorContains(t, err, `protocol "sctp"`)
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"web", "my_app-1.prod", "3scale", "Web"} {
		assert.NoError(t, api.CheckName(name), name)
	}
	for _, name := range []string{"", "-web", "web-", "a b", "10", "10.0.0.1", "tcp:web", "a/b"} {
		assert.Error(t, api.CheckName(name), name)
	}
}

func TestMatches(t *testing.T) {
	v := service.View{ID: 12, Name: "Web", Frontends: []bpf.Frontend{frontend("10.96.0.1:80", "tcp"), frontend("[fd00::1]:0", "")}}
	for _, ref := range []string{"12", "Web", "10.96.0.1:80", "tcp:10.96.0.1:80", "[fd00::1]", "any:[fd00::1]"} {
		assert.True(t, api.Matches(v, ref), ref)
	}
	for _, ref := range []string{"1", "", "web", "10.96.0.1", "udp:10.96.0.1:80", "10.96.0.1:81"} {
		assert.False(t, api.Matches(v, ref), ref)
	}
}

func TestSpecs(t *testing.T) {
	both := api.Service{
		Frontends: []api.Frontend{{Address: "10.96.0.1", Port: 80}, {Address: "fd00::1", Port: 80, Protocol: "tcp"}},
		Backends:  []api.Backend{{Address: "10.0.0.1:80", Weight: 2}, {Address: "[fd00::2]", State: service.PhaseDraining}}}
	specs, err := both.Specs()
	require.NoError(t, err)
	assert.Equal(t, []service.Spec{
		{Frontend: frontend("10.96.0.1:80", ""), Backends: []service.Target{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 2}}},
		{Frontend: frontend("[fd00::1]:80", "tcp"), Backends: []service.Target{{Addr: netip.MustParseAddrPort("[fd00::2]:0"), Drain: true}}},
	}, specs)

	front := []api.Frontend{{Address: "10.96.0.1", Port: 80}}
	for want, s := range map[string]api.Service{
		"no frontend":            {},
		"no IP address":          {Frontends: []api.Frontend{{Address: "web"}}},
		"has port -1":            {Frontends: []api.Frontend{{Address: "10.96.0.1", Port: -1}}},
		"protocol 132":           {Frontends: []api.Frontend{{Address: "10.96.0.1", Protocol: "132"}}},
		"has 2 frontends":        {Name: "web", Frontends: []api.Frontend{{Address: "10.96.0.1"}, {Address: "fd00::1"}}},
		"service name":           {Name: "a b", Frontends: front},
		"different families":     {Frontends: front, Backends: []api.Backend{{Address: "[fd00::2]:80"}}},
		"twice":                  {Frontends: front, Backends: []api.Backend{{Address: "10.0.0.1:80"}, {Address: "10.0.0.1:80"}}},
		"weight 101: choose 1":   {Frontends: front, Backends: []api.Backend{{Address: "10.0.0.1:80", Weight: 101}}},
		"no unicast address":     {Frontends: front, Backends: []api.Backend{{Address: "224.0.0.1:80"}}},
		"frontend 10.96.0.1:80:": {Frontends: front, Backends: []api.Backend{{Address: "x"}}},
	} {
		_, err := s.Specs()
		assert.ErrorContains(t, err, want)
	}
}
