{{/* The models of a release, and where each comes from. */}}

{{/* Renders a template once a model, whose own values go over the release's. Without `models` there is one, of the
     release's values. Call with (list $ "forkjoin.deployment"). */}}
{{- define "forkjoin.forEachModel" -}}
{{- $root := index . 0 }}
{{- $template := index . 1 }}
{{- $names := list }}
{{- range $own := $root.Values.models | default (list dict) }}
{{- if has $own.name $names }}
{{- fail (printf "models: expected a name of its own for each, got %s twice" $own.name) }}
{{- end }}
{{- $names = append $names $own.name }}
{{- include $template (set (omit $root "Values") "Values" (mergeOverwrite (deepCopy $root.Values) $own)) }}
{{- end }}
{{- end }}

{{/* hf, pvc, s3, gs, az or file; empty for the embedded model. */}}
{{- define "forkjoin.scheme" -}}
{{- regexFind "^[a-z0-9]+://" .Values.model.uri | trimSuffix "://" }}
{{- end }}

{{/* What follows the scheme. */}}
{{- define "forkjoin.address" -}}
{{- regexReplaceAll "^[a-z0-9]+://" .Values.model.uri "" }}
{{- end }}

{{/* The model as vLLM takes it: a name of the hub, a folder, or the address of a bucket. */}}
{{- define "forkjoin.model" -}}
{{- $scheme := include "forkjoin.scheme" . }}
{{- $address := include "forkjoin.address" . }}
{{- if eq $scheme "hf" }}{{ $address | splitList "@" | first }}
{{- else if eq $scheme "pvc" }}/models/{{ $address | splitList "/" | rest | join "/" | trimSuffix "/" }}
{{- else if eq $scheme "file" }}{{ $address }}
{{- else }}{{ .Values.model.uri }}
{{- end }}
{{- end }}

{{- define "forkjoin.revision" -}}
{{- if eq (include "forkjoin.scheme" .) "hf" }}{{ regexFind "@.+$" .Values.model.uri | trimPrefix "@" }}{{ end }}
{{- end }}
