from colossal_llama.commands.tokenizer_report import main

if __name__ == "__main__":
    raise SystemExit(main())
