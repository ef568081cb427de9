from colossal_llama.commands.init_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
