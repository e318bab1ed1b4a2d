"""The LLM server: ``tidegate.llm.v1.LlmService`` on vLLM's ``AsyncLLM``.

    python -m tidegate.serving.llm --model-repository models --model-name smollm2

A prompt passes these modules, in order:

1. `api.service` takes the call;
2. `requests` reads the request and refuses bad fields;
3. `api.generation` runs the call; `admission` limits how many requests the server holds;
4. `preprocessing.grammar_checker` compiles the constraint in a separate process;
5. `preprocessing.tokenizer` turns the prompt into token ids;
6. `engine.vllm_engine` runs the request on vLLM, and `engine.detokenizer` turns tokens into text;
7. `postprocessing` separates reasoning and calls of tools from the text;
8. `api.responses` builds the messages, and `api.time_limits` ends calls of stalled clients.

`engine_process` is code that runs inside the processes of vLLM's engine. Only `engine`,
`engine_process`, `postprocessing` and `preprocessing.tokenizer` import vLLM.
"""
