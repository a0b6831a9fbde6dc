// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/api/apitest"
	"github.com/mustang-net/mustang/config"
)

// FuzzApply applies any file: it is refused, or lists the same services when it is printed and applied again.
func FuzzApply(f *testing.F) {
	for _, text := range []string{
		`[]`, ``, `null`, `{}`, `[null]`, `[{}]`, "- frontends:\n  - address: 10.96.0.1\n    port: 80\n  backends:\n  - address: 10.0.0.1:80\n",
		`[{"name":"web","frontends":[{"address":"10.96.0.1","port":80,"protocol":"tcp"}],"backends":[{"address":"10.0.0.1:80","weight":3,"active":true,"state":"draining"}],"affinity_seconds":60}]`,
		`[{"source":"docker","frontends":[]},{"id":7,"source":"svc","network":"n","frontends":[{"address":"fd00::1"},{"address":"10.96.0.1"}],"backends":[{"address":"[fd00::2]"},{"address":"10.0.0.2"}]}]`,
		"a: &a [*a]", "&a [&b [*a, *a], *b]", "- !!binary aGk=", "[1] [2]", "'\x00'", "- {frontends: [{address: 10.96.0.1, port: 80}], frontends: []}", "# nothing",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := decodeServices(text)
		if err != nil {
			return
		}
		e := env{stdin: bytes.NewReader(text)}
		specs, _, err := e.readSpecs("-")
		if err != nil {
			return
		}
		host := &apitest.Host{}
		_, err = host.ApplyServices(context.Background(), specs)
		require.NoError(t, err)
		printed, err := json.Marshal(api.ServicesOf(host.ServiceList))
		require.NoError(t, err)
		e.stdin = bytes.NewReader(printed)
		again, others, err := e.readSpecs("-")
		require.NoError(t, err, "%s", printed)
		require.Zero(t, others)
		done, err := host.ApplyServices(context.Background(), again)
		require.NoError(t, err)
		require.Equal(t, api.Applied{Unchanged: len(host.ServiceList)}, done, "%s", printed)
		require.LessOrEqual(t, len(host.ServiceList), max(len(specs), len(list)))
	})
}

// FuzzCommandLine runs any command line on a host that is empty: it ends with one of our exit codes, and says why where
// that is not 0.
func FuzzCommandLine(f *testing.F) {
	for _, line := range []string{
		"svc add --service=10.96.0.100:5201 --backend=192.168.10.10:5201@3,10.0.0.1 --protocol=tcp --affinity 60s", "svc add --service [fd00::1]:80 --backend [fd00::2]",
		"svc rm tcp:10.96.0.1:80", "svc apply -f -", "svc ls -o json", "svc ls --columns a,b", "svc drain 10.0.0.1:80 --undo", "ep add --ifname eth0 --netns /run/netns/a",
		"ep rm 10.0.0.1", "ep ls -q", "network create web --opt mode=bridge --subnet 10.77.0.0/24 --gateway 10.77.0.1 --ip-range 10.77.0.128/25 --label a=b", "network ls",
		"network rm web", "ports --audit -o wide", "status --wait=1ms", "--log-level debug status", "--config /nonexistent status", "version", "help", "svc -h", "-- svc", "svc add --affinity -1s --service= --backend=",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Fields(line)
		for _, word := range []string{"daemon", "bench", "create", "helper", "wait", "config", "-f", "/"} {
			if strings.Contains(line, word) {
				return // they do more than ask a host
			}
		}
		var out, errs bytes.Buffer
		host := &apitest.Host{State: api.Status{Ready: true}}
		held := 0
		oneAtATime.Lock()
		defer oneAtATime.Unlock()
		code := run(context.Background(), env{
			args: append([]string{"mustang"}, args...), stdin: strings.NewReader("[]"), stdout: &out, stderr: &errs,
			getenv: func(string) string { return "" },
			open: func(context.Context, config.Config) (api.Host, func() error, error) {
				held++
				return host, func() error { held--; return nil }, nil
			},
		})
		require.Zero(t, held, "the host was not let go of")
		require.Contains(t, []int{exitOK, exitFailed, exitUsage}, code)
		if code != exitOK {
			require.True(t, strings.HasPrefix(errs.String(), "mustang: "), "%q", errs.String())
		}
	})
}
